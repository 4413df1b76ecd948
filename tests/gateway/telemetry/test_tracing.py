"""Traces as a collector sees them, made by real requests; and that nothing waits for a collector that does not work."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from collector import Collector, SeenSpan, run_collector
from conftest import QUESTION, Running, run_gateway, wait_until
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry

from gateway.http.record import AttemptRequest, RequestRecord
from gateway.telemetry.tracing import Tracing, describe_process

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PATH = "/v1/chat/completions"
OFF = """
import asyncio, sys
from pathlib import Path
from gateway.app import create_app
from gateway.http.call import Call
from gateway.http.server import build_server
from gateway.settings import GatewaySettings

async def main():
    settings = GatewaySettings.model_validate({"state_dir": sys.argv[1], "gateway": {"access_log": True}})
    app = create_app(settings)
    server = build_server(app, host="127.0.0.1", port=0, drain_timeout_s=1)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    server.should_exit = True
    await serving

asyncio.run(main())
print(*(name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "requests", "google")))
"""
MISSING = """
import sys
sys.modules["opentelemetry"] = None
from gateway.errors import MissingExtra
from gateway.settings import GatewaySection
from gateway.telemetry.watched import check_tracing
check_tracing(GatewaySection())
try:
    check_tracing(GatewaySection(otlp_endpoint="http://127.0.0.1:4318"))
except MissingExtra as error:
    print(error)
"""


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    for name in ("OTEL_TRACES_SAMPLER", "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")  # milliseconds
    with run_collector() as collector:
        yield collector


@asynccontextmanager
async def run_traced(tmp_path: Path, collector: Collector, **section: Any) -> AsyncIterator[Running]:
    async with run_gateway(tmp_path, otlp_endpoint=collector.url, **section) as gateway:
        yield gateway


async def wait_for_spans(collector: Collector, num_server: int, num_client: int) -> tuple[Any, Any]:
    """The spans once all have come. Fails if there are more."""
    await wait_until(
        lambda: len(collector.of_kind("server")) >= num_server and len(collector.of_kind("client")) >= num_client
    )
    await asyncio.sleep(0.1)
    server, client = collector.of_kind("server"), collector.of_kind("client")
    assert (len(server), len(client)) == (num_server, num_client)
    return server, client


def subset(span: SeenSpan, prefix: str) -> dict[str, Any]:
    return {name: value for name, value in span.attributes.items() if name.startswith(prefix)}


async def test_a_request_is_a_server_span_with_one_client_span_that_the_engine_continues(
    tmp_path: Path, collector: Collector
) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=opaque", "x-request-id": "mine-1"}
    async with run_traced(tmp_path, collector) as gateway:
        await gateway.ask(headers=headers, max_tokens=7, temperature=0.5)
        (server,), (client,) = await wait_for_spans(collector, 1, 1)
        stable = gateway.context.deployment.view.stable
        port = gateway.engine_port
    assert (server.name, server.trace_id, server.parent_id) == (f"POST {PATH}", TRACE, PARENT)
    assert (client.name, client.trace_id, client.parent_id) == ("chat default", TRACE, server.span_id)
    assert server.start <= client.start <= client.end <= server.end
    assert not server.has_failed and not client.has_failed and not server.events
    assert server.attributes == {
        "http.request.method": "POST", "http.route": PATH, "url.path": PATH, "url.scheme": "http",
        "http.response.status_code": 200, "gen_ai.operation.name": "chat", "gen_ai.request.model": "default",
        "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 4, "prefloop.app": "tests",
        "prefloop.request_id": "mine-1", "prefloop.paired": False, "prefloop.checkpoint": stable,
        "prefloop.arm": "stable",
    }  # fmt: skip
    assert client.attributes == {
        "http.request.method": "POST", "http.response.status_code": 200, "server.address": "127.0.0.1",
        "server.port": port, "url.full": f"http://127.0.0.1:{port}{PATH}", "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm", "gen_ai.request.model": "default", "gen_ai.response.model": stable,
        "gen_ai.request.stream": False, "gen_ai.request.max_tokens": 7, "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 4, "prefloop.checkpoint": stable,
        "prefloop.arm": "stable",
    }  # fmt: skip
    assert server.resource["service.name"] == "prefloop-gateway"
    handed_on = gateway.engine.headers[0]
    assert handed_on["traceparent"].startswith(f"00-{TRACE}-{client.span_id}-0")
    assert handed_on["tracestate"] == "vendor=opaque"


async def test_a_stream_tells_its_first_token_and_its_tokens(tmp_path: Path, collector: Collector) -> None:
    async with run_traced(tmp_path, collector) as gateway:
        stream = await gateway.client().chat.completions.create(
            **QUESTION, stream=True, stream_options={"include_usage": True}
        )
        assert [chunk async for chunk in stream]
        (server,), (client,) = await wait_for_spans(collector, 1, 1)
    for span in (server, client):
        assert span.start < span.events["first_token"] < span.end
    assert client.end - client.events["first_token"] > 4e6  # it lasts as long as the stream
    assert client.attributes["gen_ai.request.stream"] is True
    assert 0 < client.attributes["gen_ai.response.time_to_first_chunk"] < 5
    assert subset(server, "gen_ai.usage") == {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 4}


async def test_tokens_that_only_the_limits_see_are_told_as_well(tmp_path: Path, collector: Collector) -> None:
    async with run_traced(tmp_path, collector) as gateway:
        body = {"name": "limited", "scope": "app", "limits": {"tokens_per_minute": 1000}}
        async with gateway.http.post(f"{gateway.url}/operator/v1/keys", json=body, headers=gateway.admin) as answer:
            gateway.key = (await answer.json())["key"]
        stream = await gateway.client().chat.completions.create(**QUESTION, stream=True)
        assert [chunk.usage async for chunk in stream][-1] is None
        (server,), _ = await wait_for_spans(collector, 1, 1)
    assert subset(server, "gen_ai.usage") == {"gen_ai.usage.input_tokens": 5, "gen_ai.usage.output_tokens": 4}


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_pair_is_one_server_span_with_two_client_spans(
    tmp_path: Path, collector: Collector, is_stream: bool
) -> None:
    async with run_traced(tmp_path, collector) as gateway:
        client = gateway.client(X_Prefloop_Compare="always", X_Prefloop_User="ada")
        answer = await client.chat.completions.create(**QUESTION, stream=is_stream)
        if is_stream:
            answer = [chunk async for chunk in answer][-1]
        (server,), attempts = await wait_for_spans(collector, 1, 2)
    assert {span.parent_id for span in attempts} == {server.span_id}
    assert len({span.span_id for span in attempts}) == 2
    assert {line["traceparent"].split("-")[2] for line in gateway.engine.headers} == {s.span_id for s in attempts}
    assert server.attributes["prefloop.paired"] is True
    assert server.attributes["prefloop.comparison"] == answer.comparison["id"]
    assert "prefloop.arm" not in server.attributes and "prefloop.checkpoint" not in server.attributes
    assert [span.attributes["prefloop.arm"] for span in attempts] == ["stable", "stable"]


async def test_every_attempt_has_its_span(tmp_path: Path, collector: Collector) -> None:
    async with run_traced(tmp_path, collector) as gateway:
        gateway.engine.num_500 = 2
        await gateway.ask()
        (server,), attempts = await wait_for_spans(collector, 1, 3)
    assert [span.has_failed for span in attempts] == [True, True, False]
    assert [span.attributes.get("error.type") for span in attempts] == ["500", "500", None]
    assert not server.has_failed


async def test_refusals_and_failures_are_told_apart(tmp_path: Path, collector: Collector) -> None:
    async with run_traced(tmp_path, collector, connect_wait_s=0.1) as gateway:
        with pytest.raises(openai.AuthenticationError):
            await gateway.client("pl_nobody_nothing").chat.completions.create(**QUESTION)
        gateway.engine.fail_ranks = {0}
        with pytest.raises(openai.BadRequestError):
            await gateway.client().chat.completions.create(**QUESTION)
        await gateway.engine_runner.cleanup()
        with pytest.raises(openai.InternalServerError):
            await gateway.client().chat.completions.create(**QUESTION)
        (refused, bad, failed), (attempt, lost) = await wait_for_spans(collector, 3, 2)
    codes = [span.attributes["http.response.status_code"] for span in (refused, bad, failed)]
    assert codes == [401, 400, 503]
    assert [span.has_failed for span in (refused, bad, failed)] == [False, False, True]
    assert failed.attributes["error.type"] == "503"
    assert (attempt.attributes["error.type"], attempt.has_failed) == ("400", True)  # a client's span calls 400 an error
    assert (lost.attributes["error.type"], lost.has_failed) == ("EngineUnavailable", True)


@pytest.mark.parametrize("compare", ["never", "always"])
async def test_a_stream_that_breaks_is_a_failure(tmp_path: Path, collector: Collector, compare: str) -> None:
    async with run_traced(tmp_path, collector) as gateway:
        gateway.engine.break_after = 3
        stream = await gateway.client(X_Prefloop_Compare=compare).chat.completions.create(**QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="stopped in the middle"):
            assert [chunk async for chunk in stream]
        (server,), attempts = await wait_for_spans(collector, 1, 1 if compare == "never" else 2)
    assert (server.has_failed, server.attributes["error.type"]) == (True, "broken")
    assert server.attributes["http.response.status_code"] == 200
    assert attempts[0].attributes["error.type"] == "EngineInterrupted" and attempts[0].has_failed


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_leaves_is_no_failure(tmp_path: Path, collector: Collector, is_stream: bool) -> None:
    async with run_traced(tmp_path, collector) as gateway:
        gateway.engine.num_words = 1_000_000
        gateway.engine.delay_s = 0 if is_stream else 30
        answering = gateway.http.post(
            f"{gateway.url}{PATH}", json={**QUESTION, "stream": is_stream}, headers=gateway.auth
        )
        if is_stream:
            answer = await answering
            await answer.content.readline()
            answer.close()
        else:
            task = asyncio.ensure_future(answering)
            await wait_until(lambda: gateway.engine.requests)
            task.cancel()
        (server,), (client,) = await wait_for_spans(collector, 1, 1)
    assert not server.has_failed and not client.has_failed
    assert server.attributes["error.type"] == "client_gone"
    assert client.attributes["error.type"] == ("client_gone" if is_stream else "CancelledError")
    assert ("http.response.status_code" in server.attributes) == is_stream


@pytest.mark.parametrize(("sampler", "flags"), [("always_off", "01"), ("", "00")])
async def test_an_engine_learns_that_a_trace_is_not_sampled(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, sampler: str, flags: str
) -> None:
    if sampler:
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    async with run_traced(tmp_path, collector) as gateway:
        await gateway.ask(headers={"traceparent": f"00-{TRACE}-{PARENT}-{flags}"})
        handed_on = gateway.engine.headers[0]["traceparent"].split("-")
    assert handed_on[1] == TRACE
    assert int(handed_on[3], 16) & 1 == 0
    assert collector.spans == []


async def test_a_traceparent_that_is_not_one_begins_a_new_trace(tmp_path: Path, collector: Collector) -> None:
    async with run_traced(tmp_path, collector) as gateway:
        await gateway.ask(headers={"traceparent": "00-xyz-1-01", "tracestate": "a=b"})
        (server,), _ = await wait_for_spans(collector, 1, 1)
    assert server.parent_id == "" and server.trace_id != TRACE
    assert "tracestate" not in gateway.engine.headers[0]


async def test_what_is_said_and_who_says_it_stay_out(tmp_path: Path, collector: Collector) -> None:
    words = ["whispered-question", "ada-the-user", "conversation-9", "secret-tag"]
    async with run_traced(tmp_path, collector) as gateway:
        headers = {"x-prefloop-user": words[1], "x-prefloop-conversation": words[2], "x-prefloop-compare": "always"}
        messages = [{"role": "user", "content": words[0]}]
        paired = await gateway.ask(headers=headers, messages=messages, metadata={"task": words[3]}, user=words[1])
        await wait_for_spans(collector, 1, 2)
        secrets = [gateway.key, gateway.app.secrets.admin_key, paired["comparison"]["token"]]
    sent = b"".join(collector.bodies)
    assert b"prefloop.comparison" in sent
    assert [word for word in [*words, *secrets, "Answer of seed"] if word.encode() in sent] == []


async def test_apps_do_not_learn_of_traces(tmp_path: Path, collector: Collector) -> None:
    async with (
        run_traced(tmp_path, collector) as gateway,
        gateway.http.post(f"{gateway.url}{PATH}", json=QUESTION, headers=gateway.auth) as answer,
    ):
        assert not {"traceparent", "tracestate", "x-prefloop-checkpoint"} & {name.lower() for name in answer.headers}


async def read_spans_metric(gateway: Running, outcome: str) -> float:
    value = gateway.context.metrics.registry.get_sample_value("prefloop_spans_total", {"outcome": outcome})
    assert value is not None
    return value


async def test_a_collector_that_fails_costs_no_request_and_is_logged_once(
    tmp_path: Path, collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    collector.status = 400
    async with run_traced(tmp_path, collector) as gateway:
        for count in (2, 4, 6):
            await gateway.ask()
            async with asyncio.timeout(10):
                while await read_spans_metric(gateway, "failed") < count:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        lines = [record for record in caplog.records if record.name.startswith("opentelemetry")]
        assert len(lines) == 1 and "400" in lines[0].getMessage()
        collector.status = 200
        await gateway.ask()
        await wait_for_spans(collector, 1, 1)
        collector.status = 400
        await gateway.ask()
        await wait_until(lambda: sum(record.name.startswith("opentelemetry") for record in caplog.records) == 2)
        assert await read_spans_metric(gateway, "exported") == 2


async def test_a_collector_that_hangs_costs_no_request_and_does_not_hold_up_the_end(
    tmp_path: Path, collector: Collector
) -> None:
    collector.is_open.clear()
    loop = asyncio.get_running_loop()
    async with run_traced(tmp_path, collector) as gateway:
        began = loop.time()
        for _ in range(20):
            await gateway.ask()
        assert loop.time() - began < 5
        began = loop.time()
    assert loop.time() - began < 8


async def test_without_a_collector_there_is_nothing_to_see(gateway: Running) -> None:
    await gateway.ask(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert "traceparent" not in gateway.engine.headers[0]
    assert gateway.context.metrics.registry.get_sample_value("prefloop_spans_total", {"outcome": "failed"}) is None


class StuckExporter(InMemorySpanExporter):
    """Holds the queue's thread until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def export(self, spans: Any) -> SpanExportResult:
        self.go_on.wait(10)
        return super().export(spans)


def record_request(tracing: Tracing, status: int = 200, headers: dict[bytes, bytes] | None = None) -> None:
    record = RequestRecord(PATH)
    record.status = status
    tracing.begin(record, headers or {}).finish(record, "req_1")


def test_spans_that_find_the_queue_full_hold_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "16")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    registry, exporter = CollectorRegistry(), StuckExporter()
    tracing = Tracing(exporter, registry)
    for _ in range(100):
        record_request(tracing)
    exporter.go_on.set()
    tracing.close()
    exported = registry.get_sample_value("prefloop_spans_total", {"outcome": "exported"})
    assert exported == len(exporter.get_finished_spans())
    assert 16 <= exported <= 24  # a batch may already be in the exporter's hands


def test_an_exporter_that_raises_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(InMemorySpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            raise OSError("no route")

    registry = CollectorRegistry()
    tracing = Tracing(Broken(), registry)
    for _ in range(3):
        record_request(tracing)
    tracing.close()
    assert registry.get_sample_value("prefloop_spans_total", {"outcome": "failed"}) == 3
    assert [record.getMessage() for record in caplog.records if "test_tracing" in record.name] == [
        "spans could not be exported"
    ]


def test_a_sampler_by_ratio_takes_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0.1")
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, CollectorRegistry())
    for _ in range(1000):
        record_request(tracing)
    for _ in range(10):
        record_request(tracing, headers={b"traceparent": f"00-{TRACE}-{PARENT}-01".encode()})
    tracing.close()
    spans = exporter.get_finished_spans()
    assert sum(span.context.trace_id == int(TRACE, 16) for span in spans) == 10  # the client had decided
    assert 50 < len(spans) - 10 < 150


def test_a_disabled_sdk_records_nothing_and_hands_on_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    exporter = InMemorySpanExporter()
    tracing = Tracing(exporter, CollectorRegistry())
    trace = tracing.begin(RequestRecord(PATH), {})
    asked = AttemptRequest(PATH, "http://127.0.0.1:1", "c", "stable", "default", "default", False, None, None)
    assert trace.trace_id == "" and trace.begin_attempt(asked).headers == b""
    tracing.close()
    assert exporter.get_finished_spans() == ()


def test_the_process_may_be_named_by_the_standard_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-gateway")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging")
    attributes = describe_process().attributes
    assert attributes["service.name"] == "shop-gateway"
    assert attributes["deployment.environment.name"] == "staging"


def run_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_gateway_without_traces_never_imports_opentelemetry(tmp_path: Path) -> None:
    assert run_python(OFF, str(tmp_path)) == ""


def test_traces_without_the_package_are_refused_with_its_name() -> None:
    assert "install prefloop[otel]" in run_python(MISSING)

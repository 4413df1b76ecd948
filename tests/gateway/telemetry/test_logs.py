"""Log lines and the access log: machines can read them, requests can be found by the id that the client got, secrets are not there."""

import asyncio
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import openai
import psutil
import pytest
from conftest import QUESTION, Running, run_gateway, wait_until
from prometheus_client import CollectorRegistry

from gateway.telemetry.access import AccessLine, AccessLog
from gateway.telemetry.logs import JsonFormatter, TextFormatter, current_request_id

PATH = "/v1/chat/completions"


class Lines:
    """What a handler with our formatter wrote."""

    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]

    def of(self, logger: str) -> list[dict[str, Any]]:
        return [line for line in self.all if line["logger"] == logger]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Everything that is logged, from DEBUG on, as JSON."""
    lines = Lines()
    handler = logging.StreamHandler(lines.stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield lines
    root.removeHandler(handler)
    root.setLevel(level)


@asynccontextmanager
async def run_logged(tmp_path: Path, **section: Any) -> AsyncIterator[Running]:
    async with run_gateway(tmp_path, access_log=True, **section) as gateway:
        yield gateway


async def post(gateway: Running, body: Any = QUESTION, path: str = PATH, **headers: str) -> aiohttp.ClientResponse:
    async with gateway.http.post(gateway.url + path, json=body, headers={**gateway.auth, **headers}) as answer:
        await answer.read()
        return answer


def make_record(message: str, *args: object, **extra: Any) -> logging.LogRecord:
    record = logging.LogRecord("gateway.test", logging.ERROR, "", 0, message, args, None)
    record.created = 1767323045.6789
    record.__dict__.update(extra)
    return record


def test_json_is_one_object_a_line_with_the_time_in_utc() -> None:
    try:
        raise ValueError("line one\nline two")
    except ValueError:
        record = make_record(
            'two\nlines and "quotes" \udc80 %s', "é", request_id="req_1", trace_id="ab", exc_info=sys.exc_info()
        )
    text = JsonFormatter().format(record)
    assert "\n" not in text and text.isascii()
    line = json.loads(text)
    assert line.pop("error").startswith("Traceback") and "line two" not in line
    assert line == {
        "time": "2026-01-02T03:04:05.678Z", "level": "ERROR", "logger": "gateway.test",
        "message": 'two\nlines and "quotes" \udc80 é', "request_id": "req_1", "trace_id": "ab",
    }  # fmt: skip


def test_text_has_the_fields_behind_the_message() -> None:
    text = TextFormatter().format(make_record("gave up on %s", "c-1", request_id="req_1"))
    assert text.endswith(" ERROR gateway.test: gave up on c-1 request_id=req_1")
    assert TextFormatter().format(make_record("plain")).endswith(" ERROR gateway.test: plain")


def test_a_line_of_an_asgi_route_carries_its_request() -> None:
    token = current_request_id.set("req_2")
    try:
        assert json.loads(JsonFormatter().format(make_record("x")))["request_id"] == "req_2"
    finally:
        current_request_id.reset(token)


async def test_every_kind_of_request_leaves_one_line(tmp_path: Path, lines: Lines) -> None:
    async with run_logged(tmp_path, max_body_bytes=2000) as gateway:
        whole = await post(gateway, **{"x-request-id": "mine-1"})
        await post(gateway, {**QUESTION, "stream": True}, PATH + "?api-version=secret")
        await post(gateway, **{"x-prefloop-compare": "always"})
        await post(gateway, {"model": "nobody", "messages": []})
        await post(gateway, {"model": 1})
        await post(gateway, {"model": "x" * 3000})
        await post(gateway, authorization="Bearer pl_000000000000_wrong")
        async with gateway.http.get(f"{gateway.url}/livez"):
            pass  # not a path to an engine
        await wait_until(lambda: len(lines.of("gateway.access")) == 7)
        key_id = gateway.key.split("_")[1]
    single, stream, pair, unknown, invalid, large, stranger = lines.of("gateway.access")
    assert single.pop("duration_ms") > 0 and single.pop("bytes") > 300 and single.pop("time")
    assert single == {
        "level": "INFO", "logger": "gateway.access", "message": "request", "method": "POST", "path": PATH, "status": 200,
        "ended": "complete", "request_id": whole.headers["x-request-id"], "app": "tests", "key_id": key_id,
        "arm": "stable",
    }  # fmt: skip
    assert stream["path"] == PATH  # a query may hold a secret
    assert 0 < stream["first_token_ms"] < stream["duration_ms"]
    assert (pair["paired"], pair["arm"]) == (True, "stable")
    assert [line["status"] for line in (unknown, invalid, large, stranger)] == [404, 400, 413, 401]
    assert unknown["app"] == "tests" and "arm" not in unknown
    assert "app" not in stranger and "app" not in large


async def test_lines_say_how_an_answer_ended(tmp_path: Path, lines: Lines) -> None:
    async with run_logged(tmp_path, body_timeout_s=0.2) as gateway:
        gateway.engine.break_after = 2
        await post(gateway, {**QUESTION, "stream": True})
        gateway.engine.delay_s = 30
        task = asyncio.create_task(post(gateway))
        await wait_until(lambda: len(gateway.engine.requests) == 2)
        task.cancel()
        await wait_until(lambda: len(lines.of("gateway.access")) == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nX-Request-Id: slow-1\r\nContent-Length: 9\r\n\r\n1"
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 408 ") and b"x-request-id: slow-1\r\n" in answer
        writer.close()
        await wait_until(lambda: len(lines.of("gateway.access")) == 3)
    assert lines.of("gateway.access")[2]["request_id"] == "slow-1"
    seen = [(line["status"], line["ended"]) for line in lines.of("gateway.access")]
    assert seen == [(200, "broken"), (499, "client_gone"), (408, "complete")]


async def test_without_the_setting_no_line_is_written(gateway: Running, lines: Lines) -> None:
    await gateway.ask()
    assert lines.of("gateway.access") == []
    assert gateway.context.metrics.registry.get_sample_value("prefloop_access_lines_dropped_total") is None


async def test_lines_about_a_request_carry_the_id_that_the_client_got(tmp_path: Path, lines: Lines) -> None:
    async with run_gateway(tmp_path, connect_wait_s=0.0) as gateway:
        gateway.engine.num_500 = 1
        gave_up = await post(gateway)
        paired = await gateway.ask({"x-prefloop-compare": "always", "x-prefloop-user": "ada"})
        await asyncio.to_thread(gateway.context.writer.close)
        choice = {"preferred": "first", "token": paired["comparison"]["token"]}
        lost = await post(gateway, choice, f"/v1/comparisons/{paired['comparison']['id']}/choice")
        unrecorded = await post(gateway, **{"x-prefloop-compare": "always", "x-prefloop-user": "bob"})
        gateway.context.deployment.view = None  # type: ignore[assignment]
        failed = await post(gateway)
    assert [answer.status for answer in (gave_up, lost, unrecorded, failed)] == [503, 503, 200, 500]
    expected = {
        "gateway.attempts": gave_up, "gateway.choices": lost, "gateway.recorder": unrecorded, "gateway.call": failed,
    }  # fmt: skip
    for logger, answer in expected.items():
        assert [line["request_id"] for line in lines.of(logger)] == [answer.headers["x-request-id"]], logger


async def test_secrets_and_people_are_never_logged(tmp_path: Path, lines: Lines) -> None:
    async with run_logged(tmp_path, connect_wait_s=0.0) as gateway:
        person = {"x-prefloop-user": "ada-lovelace", "x-prefloop-compare": "always"}
        question = {**QUESTION, "messages": [{"role": "user", "content": "whispered"}], "user": "ada-lovelace"}
        paired = await gateway.ask(person, **{"messages": question["messages"]})
        token, comparison = paired["comparison"]["token"], paired["comparison"]["id"]
        wrong = [f"pl_{'0' * 12}_guessed-secret", gateway.key + "x", "not-even-a-key"]
        for key in wrong:
            assert (await post(gateway, question, authorization=f"Bearer {key}")).status == 401
        path = f"/v1/comparisons/{comparison}/choice"
        for body in ({"preferred": "first", "token": token + "x"}, {"preferred": "nobody", "token": token}):
            assert (await post(gateway, body, path)).status in (400, 401)
        assert (await post(gateway, {"preferred": "first", "token": token}, path)).status == 200
        await post(gateway, question, PATH + "?key=" + gateway.key)
        gateway.engine.fail_ranks = {len(gateway.engine.requests)}
        await post(gateway, question)
        gateway.engine.num_500 = 1
        await post(gateway, question)
        gateway.context.deployment.view = None  # type: ignore[assignment]
        await post(gateway, question, **person)
        admin, secrets = gateway.app.secrets.admin_key, gateway.app.secrets
        await post(gateway, {"key": admin}, "/console/session")
        key = gateway.key
    assert len(lines.of("gateway.access")) == 8 and lines.of("gateway.call")
    hidden = [key, admin, token, *wrong, key.split("_", 2)[2], admin.split("_", 2)[2], token.rsplit(".", 1)[1]]
    hidden += [secrets.pepper.hex(), secrets.token_key.hex(), "ada-lovelace", "whispered", "Answer of seed"]
    assert [word for word in hidden if word in lines.text] == []


def test_lines_that_find_the_queue_full_are_counted(lines: Lines) -> None:
    registry = CollectorRegistry()
    log = AccessLog(registry)
    line = AccessLine(method="POST", path=PATH, status=200, ended="complete", duration_ms=1.5, bytes=1, request_id="r")
    for _ in range(10_007):  # nothing takes them yet
        log.add(line)
    log.start()
    log.close()
    assert registry.get_sample_value("prefloop_access_lines_dropped_total") == 7
    assert len(lines.of("gateway.access")) == 10_000


def test_a_process_in_json_writes_nothing_else_to_stderr(tmp_path: Path) -> None:
    """Server warnings, Python warnings and failures included."""
    environment = {
        **os.environ, "PREFLOOP_CONFIG": os.devnull, "PREFLOOP_STATE_DIR": str(tmp_path / "state"),
        "PREFLOOP_GATEWAY__PORT": "0", "PREFLOOP_GATEWAY__LOG_FORMAT": "json", "PREFLOOP_GATEWAY__ACCESS_LOG": "1",
        "PREFLOOP_GATEWAY__ENGINES": '["http://127.0.0.1:1"]',
    }  # fmt: skip
    argv = [sys.executable, "-W", "always", "-m", "gateway.app"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.DEVNULL, stderr=log)
    try:
        port = find_port(process.pid)
        answer = httpx.post(f"http://127.0.0.1:{port}{PATH}", json=QUESTION)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"hello there\r\n\r\n")
            assert b"400" in connection.recv(100)
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(30)
    assert (status, answer.status_code) == (0, 401)
    seen = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert {"gateway", "gateway.access"} <= {line["logger"] for line in seen}
    assert [line["request_id"] for line in seen if "request_id" in line] == [answer.headers["x-request-id"]]


def find_port(pid: int, timeout_s: float = 60.0) -> int:
    """The port that a process listens on, once it does."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for connection in psutil.Process(pid).net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN:
                return int(connection.laddr.port)
        time.sleep(0.1)
    raise TimeoutError(f"process {pid} does not listen")


async def test_an_official_client_finds_its_request_in_the_log(tmp_path: Path, lines: Lines) -> None:
    async with run_logged(tmp_path) as gateway:
        with pytest.raises(openai.NotFoundError) as refused:
            await gateway.client().chat.completions.create(**{**QUESTION, "model": "nobody"})
        await wait_until(lambda: lines.of("gateway.access"))
    assert lines.of("gateway.access")[0]["request_id"] == refused.value.request_id

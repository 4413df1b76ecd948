"""The mock and the client, compiled and run: small real processes, so that the bench measures what it says."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from bench.gateway.checkpoints import PROBE_LOGPROBS, PROBE_TOKENS
from bench.gateway.loads import NUM_EVENTS, build_request
from bench.gateway.servers import Server
from bench.gateway.tools import compile_program
from gateway.engines.swap import read_probe_logprobs
from prefloop.servers.ports import find_port

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture
def mock(folder: Path) -> Iterator[Server]:
    port = find_port()
    server = Server("mock", [str(compile_program("mock", folder)), str(port)], port, folder / "mock.log", {})
    server.wait_until("/health", 10)
    yield server
    server.stop()


def ask(mock: Server, path: str, body: bytes) -> httpx.Response:
    return httpx.post(mock.url + path, content=body, timeout=10).raise_for_status()


def run_client(folder: Path, mock: Server, body: bytes, *, seconds: float, rate: int) -> dict[str, float]:
    (folder / "body.json").write_bytes(body)
    argv = [str(compile_program("client", folder)), str(mock.port), "4", str(seconds), str(rate)]
    done = subprocess.run([*argv, str(folder / "body.json"), "a: b"], capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("name", ["default", "c-000001-0123456789ab"])
def test_an_answer_has_591_bytes_and_the_model_that_was_asked_for(mock: Server, name: str) -> None:
    answer = ask(mock, CHAT, build_request(stream=False).replace(b"default", name.encode()))
    assert len(answer.content) == 591
    assert answer.json()["model"] == name


def test_no_two_answers_have_the_same_id(mock: Server) -> None:
    ids = [ask(mock, CHAT, build_request(stream=False)).json()["id"] for _ in range(3)]
    stream = ask(mock, CHAT, build_request(stream=True, max_tokens=3)).text
    ids += {json.loads(event.removeprefix("data: "))["id"] for event in stream.split("\n\n")[:-2]}
    assert len(ids) == len(set(ids)) == 4


@pytest.mark.parametrize("stream", [False, True])
def test_a_seed_is_said_in_the_answer(mock: Server, stream: bool) -> None:
    body = build_request(stream=stream)
    asked = [body, body[:-1] + b',"seed":1}', body[:-1] + b',"seed":1234567890}']
    answers = [ask(mock, CHAT, each).text for each in asked]
    assert [f'"content":"{seed}' in answer for seed, answer in zip(("", 1, 1234567890), answers, strict=True)] == [
        True
    ] * 3
    assert stream or {len(answer) for answer in answers} == {591}


def test_a_stream_has_as_many_events_as_tokens_were_allowed(mock: Server) -> None:
    events = ask(mock, CHAT, build_request(stream=True, max_tokens=5)).text.split("\n\n")
    assert [events[-2], events[-1]] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 4 + ["stop"]
    assert {chunk["model"] for chunk in chunks} == {"default"}


def test_adapters_are_remembered_and_the_probe_is_that_of_the_checkpoints(mock: Server) -> None:
    ask(mock, "/v1/load_lora_adapter", b'{"lora_name":"c-1","lora_path":"/nowhere"}')
    ask(mock, "/v1/load_lora_adapter", b'{"lora_name":"c-2","lora_path":"/nowhere"}')
    ask(mock, "/v1/unload_lora_adapter", b'{"lora_name":"c-1"}')
    assert [model["id"] for model in httpx.get(mock.url + "/v1/models").json()["data"]] == ["base", "c-2"]
    assert read_probe_logprobs(ask(mock, "/v1/completions", b"{}").content, PROBE_TOKENS) == PROBE_LOGPROBS


def test_the_client_keeps_a_rate_and_counts_events(mock: Server, folder: Path) -> None:
    said = run_client(folder, mock, build_request(stream=True), seconds=0.5, rate=40)
    assert (said["asked"], said["failed"]) == (20, 0)
    assert said["events"] >= said["answers"] * NUM_EVENTS > 0
    assert 0 < said["first_p50_us"] <= said["whole_p50_us"]


def test_a_pace_holds_a_streams_events_apart(mock: Server, folder: Path) -> None:
    ask(mock, "/pace/5", b"")
    said = run_client(folder, mock, build_request(stream=True, max_tokens=11), seconds=0.5, rate=20)
    assert said["whole_p50_us"] >= 10 * 5_000  # ten pauses between eleven events
    assert said["first_p50_us"] < said["whole_p50_us"]


def test_refusals_count_as_failed(folder: Path, mock: Server) -> None:
    refusing = find_port()
    code = (
        "import http.server as h\n"
        "class Refuse(h.BaseHTTPRequestHandler):\n"
        " protocol_version='HTTP/1.1'\n"
        " def do_GET(self): self.answer(200)\n"
        " def do_POST(self): self.rfile.read(int(self.headers['content-length'])); self.answer(503)\n"
        " def answer(self, code): self.send_response(code); self.send_header('content-length','0'); self.end_headers()\n"
        f"h.ThreadingHTTPServer(('127.0.0.1',{refusing}),Refuse).serve_forever()"
    )
    server = Server("refusing", ["python3", "-c", code], refusing, folder / "refusing.log", {})
    try:
        server.wait_until("/", 10)
        said = run_client(folder, server, build_request(stream=False), seconds=0.3, rate=20)
    finally:
        server.stop()
    assert said["answers"] == 0
    assert said["failed"] > 0

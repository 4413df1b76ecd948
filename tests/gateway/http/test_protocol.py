"""HTTP as clients really speak it, byte by byte: what uvicorn promises must hold on the paths taken out of it."""

import asyncio
import contextlib
import json
import re
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop
from conftest import QUESTION, Running, run_gateway, wait_until

from gateway.http.protocol import ServingProtocol

PATH = "/v1/chat/completions"


class Wire:
    """One connection to the gateway."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read_answer(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the next answer."""
        head = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 10)).decode()
        lines = head.split("\r\n")[:-2]
        headers = dict(line.lower().split(": ", 1) for line in lines[1:])
        status = int(lines[0].split()[1])
        if "content-length" in headers:
            return status, headers, await self.reader.readexactly(int(headers["content-length"]))
        if headers.get("transfer-encoding") == "chunked":
            return status, headers, await self._read_chunks()
        return status, headers, b"" if status < 200 else await self.reader.read()

    async def _read_chunks(self) -> bytes:
        body = b""
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            body += (await self.reader.readexactly(size + 2))[:-2]
        assert await self.reader.readexactly(2) == b"\r\n"
        return body

    async def is_closed(self) -> bool:
        return await asyncio.wait_for(self.reader.read(1), 5) == b""


@pytest.fixture
def protocols(monkeypatch: pytest.MonkeyPatch) -> list[ServingProtocol]:
    """The gateway's side of every connection, in order; each keeps an idle connection for 0.2 s."""
    made, all_made = ServingProtocol.connection_made, []

    def hurry(protocol: ServingProtocol, transport: asyncio.Transport) -> None:
        made(protocol, transport)
        protocol.timeout_keep_alive = 0.2  # type: ignore[assignment]
        all_made.append(protocol)

    monkeypatch.setattr(ServingProtocol, "connection_made", hurry)
    return all_made


@asynccontextmanager
async def connect(gateway: Running) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(gateway.url.rsplit(":", 1)[1]))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


def chat(gateway: Running, *lines: str, version: str = "1.1", path: str = PATH, **fields: object) -> bytes:
    """A chat request as bytes."""
    body = json.dumps({**QUESTION, **fields}).encode()
    head = [f"POST {path} HTTP/{version}", "Host: x", f"Authorization: Bearer {gateway.key}", *lines]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def test_pipelined_requests_are_answered_in_order(gateway: Running) -> None:
    async with connect(gateway) as wire:
        ids = [f"mine-{i}" for i in range(6)]
        requests = [chat(gateway, f"X-Request-Id: {name}", stream=i % 2 == 0) for i, name in enumerate(ids)]
        requests[3] = b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine-3\r\n\r\n"  # one that goes to FastAPI
        wire.writer.write(b"".join(requests))
        answers = [await wire.read_answer() for _ in ids]
    assert [headers["x-request-id"] for _, headers, _ in answers] == ids
    assert {status for status, _, _ in answers} == {200}
    assert answers[0][2].endswith(b"data: [DONE]\n\n") and answers[3][2] == b'{"status":"ok"}'


async def test_a_request_that_comes_byte_by_byte_is_one_request(gateway: Running) -> None:
    async with connect(gateway) as wire:
        for byte in chat(gateway):
            wire.writer.write(bytes([byte]))
            await wire.writer.drain()
        status, _, body = await wire.read_answer()
    assert (status, json.loads(body)["model"]) == (200, "default")


async def test_chunked_bodies_are_put_together(gateway: Running) -> None:
    body = json.dumps(QUESTION).encode()
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(body[i : i + 9]), body[i : i + 9]) for i in range(0, len(body), 9))
    async with connect(gateway) as wire:
        wire.writer.write(head.encode() + pieces + b"0\r\n\r\n")
        assert (await wire.read_answer())[0] == 200
    assert gateway.engine.requests[0]["messages"] == QUESTION["messages"]


async def test_connection_close_is_honoured(gateway: Running) -> None:
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway, "Connection: close"))
        status, headers, _ = await wire.read_answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await wire.is_closed()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_http_1_0_gets_a_body_that_ends_with_the_connection(gateway: Running, is_stream: bool) -> None:
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway, version="1.0", stream=is_stream))
        status, headers, body = await wire.read_answer()
        assert (status, headers["connection"]) == (200, "close")
        assert "transfer-encoding" not in headers
        assert body.endswith(b"data: [DONE]\n\n" if is_stream else b"}")
        assert await wire.is_closed()


async def test_a_client_that_expects_100_continue_is_told_to_go_on(gateway: Running) -> None:
    request = chat(gateway, "Expect: 100-continue")
    head, _, body = request.partition(b"\r\n\r\n")
    async with connect(gateway) as wire:
        wire.writer.write(head + b"\r\n\r\n")
        assert (await wire.read_answer())[0] == 100
        wire.writer.write(body)
        assert (await wire.read_answer())[0] == 200


@pytest.mark.parametrize("path", [PATH, "/v1/comparisons/cmp_1/choice"])
async def test_http_1_0_is_never_told_to_go_on(gateway: Running, path: str) -> None:
    async with connect(gateway) as wire:
        head, _, body = chat(gateway, "Expect: 100-continue", path=path, version="1.0").partition(b"\r\n\r\n")
        wire.writer.write(head + b"\r\n\r\n")
        await asyncio.sleep(0.1)
        wire.writer.write(body)
        assert (await wire.read_answer())[0] != 100


async def test_a_body_that_is_too_large_is_refused_before_it_has_come(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, max_body_bytes=1000) as gateway, connect(gateway) as wire:
        wire.writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n".encode())
        for _ in range(1000):
            wire.writer.write(b" " * 10_000)
            await asyncio.sleep(0)
        status, headers, body = await wire.read_answer()
        assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
        assert headers["connection"] == "close"
        assert await wire.is_closed()


@pytest.mark.parametrize(
    "rest", ["a request", "GET /livez HTTP/1.1\r\n\r\n", "no HTTP", "CONNECT x:1 HTTP/1.1\r\n\r\n"]
)
async def test_nothing_that_follows_a_body_that_is_too_large_is_asked(tmp_path: Path, rest: str) -> None:
    async with run_gateway(tmp_path, max_body_bytes=1000) as gateway, connect(gateway) as wire:
        after = chat(gateway) if rest == "a request" else rest.encode()
        wire.writer.write(chat(gateway, pad="x" * 1000) + after)
        assert (await wire.read_answer())[0] == 413
        assert await wire.is_closed()
        await asyncio.sleep(0.05)
        assert gateway.engine.requests == []


async def test_a_body_that_never_comes_times_out(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, body_timeout_s=0.2) as gateway, connect(gateway) as wire:
        wire.writer.write(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12".encode())
        assert (await wire.read_answer())[0] == 408
        assert await wire.is_closed()


async def test_a_client_that_leaves_in_a_stream_aborts_it_at_the_engine(gateway: Running) -> None:
    gateway.engine.break_after = None
    gateway.engine.delay_s = 0.0
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway, stream=True))
        await wire.reader.readuntil(b"data: ")
        wire.writer.transport.abort()
    stable = gateway.context.deployment.view.stable or ""
    await wait_until(lambda: gateway.context.deployment.in_flight(stable) == 0)
    assert gateway.context.deployment.counters.num_in_flight == 0
    assert gateway.context.deployment.counters.failed_requests == 0


async def test_a_client_that_leaves_takes_its_pipeline_with_it(gateway: Running) -> None:
    gateway.engine.delay_s = 30.0
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway) * 3)
        await wait_until(lambda: len(gateway.engine.requests) == 1)
        wire.writer.transport.abort()
    await wait_until(lambda: gateway.context.deployment.counters.num_in_flight == 0)
    await asyncio.sleep(0.05)
    assert len(gateway.engine.requests) == 1


async def test_a_query_string_changes_nothing_and_a_longer_path_is_another(gateway: Running) -> None:
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway, path=PATH + "?api-version=1") + chat(gateway, path=PATH + "/x"))
        assert [(await wire.read_answer())[0] for _ in range(2)] == [200, 404]


async def test_header_values_cannot_break_out_of_their_line(gateway: Running) -> None:
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway, "X-Request-Id: a b; <script>"))
        _, headers, _ = await wire.read_answer()
    assert re.fullmatch(r"req_[0-9a-f]{24}", headers["x-request-id"])


async def test_what_is_not_http_gets_400(gateway: Running) -> None:
    async with connect(gateway) as wire:
        wire.writer.write(b"hello there\r\n\r\n")
        status, headers, body = await wire.read_answer()
        assert (status, json.loads(body)["error"]["type"]) == (400, "invalid_request_error")
        assert headers["x-request-id"].startswith("req_")
        assert await wire.is_closed()


@pytest.mark.parametrize("is_stream", [False, True])
async def test_what_is_not_http_leaves_the_answer_before_it_whole(gateway: Running, is_stream: bool) -> None:
    gateway.engine.delay_s = 0.1
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway, stream=is_stream) + b"hello there\r\n\r\n")
        status, _, body = await wire.read_answer()
        assert status == 200 and body.endswith(b"data: [DONE]\n\n" if is_stream else b"}")
        assert await wire.is_closed()


@pytest.mark.parametrize("path", [PATH, "/v1/comparisons/cmp_1/choice"])
async def test_a_body_with_broken_chunks_gets_400(gateway: Running, path: str) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    async with connect(gateway) as wire:
        wire.writer.write(head + b"5\r\nhello\r\nnot a size\r\n")
        assert (await wire.read_answer())[0] == 400
        assert await wire.is_closed()


async def test_a_head_that_has_no_end_is_refused(gateway: Running) -> None:
    async with connect(gateway) as wire:
        wire.writer.write(f"POST {PATH} HTTP/1.1\r\n".encode())
        for i in range(1000):
            wire.writer.write(b"x-%d: %b\r\n" % (i, b"y" * 1000))
            await asyncio.sleep(0)
        status, _, body = await wire.read_answer()
        assert (status, json.loads(body)["error"]["type"]) == (431, "invalid_request_error")


@pytest.mark.parametrize(
    "start", ["POST /v1/chat/completions HT", "POST /v1/comparisons/c/choice HTTP/1.1\r\nContent-Length: 9\r\n\r\n1"]
)
async def test_a_request_that_never_ends_times_out(tmp_path: Path, start: str) -> None:
    async with run_gateway(tmp_path, body_timeout_s=0.2) as gateway, connect(gateway) as wire:
        wire.writer.write(start.encode())
        status, _, body = await wire.read_answer()
        assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
        assert await wire.is_closed()


async def test_a_connection_that_says_nothing_is_closed(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, body_timeout_s=0.2) as gateway, connect(gateway) as wire:
        assert await wire.is_closed()


async def test_what_follows_a_body_is_no_header(gateway: Running) -> None:
    body = b'{"name": "mine", "scope": "admin"}'
    head = b"POST /operator/v1/keys HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    trailer = f"Authorization: Bearer {gateway.app.secrets.admin_key}\r\n\r\n".encode()
    async with connect(gateway) as wire:
        wire.writer.write(head + b"%x\r\n%b\r\n0\r\n" % (len(body), body) + trailer)
        assert (await wire.read_answer())[0] == 401


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
async def test_offers_to_speak_something_else_are_answered_in_http(gateway: Running, protocol: str) -> None:
    async with connect(gateway) as wire:
        for _ in range(2):
            wire.writer.write(chat(gateway, "Connection: Upgrade", f"Upgrade: {protocol}"))
            assert (await wire.read_answer())[0] == 200
        wire.writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await wire.read_answer())[0] == 200


async def test_an_offer_to_speak_something_else_may_come_with_a_wish_to_close(gateway: Running) -> None:
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway, "Connection: Upgrade, close", "Upgrade: h2c") + chat(gateway))
        status, headers, _ = await wire.read_answer()
        assert (status, headers["connection"]) == (200, "close")
        assert await wire.is_closed()
    assert len(gateway.engine.requests) == 1


async def test_hundreds_of_offers_may_be_pipelined(gateway: Running) -> None:
    async with connect(gateway) as wire:
        offer = f"POST {PATH} HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".encode()
        wire.writer.write(offer * 1000)
        assert [(await wire.read_answer())[0] for _ in range(1000)] == [401] * 1000


async def test_an_address_may_be_given_whole(gateway: Running) -> None:
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway, path=f"http://x{PATH}?a=b"))
        assert (await wire.read_answer())[0] == 200


async def test_a_slow_reader_holds_the_engine_back(gateway: Running) -> None:
    gateway.engine.num_words = 400_000  # some 75 MB of events
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway, stream=True))
        await wire.reader.readuntil(b"data: ")
        written = -1
        async with asyncio.timeout(60):
            while gateway.engine.num_written != written:  # until it waits
                written = gateway.engine.num_written
                await asyncio.sleep(0.5)
        assert written < 40_000_000
        wire.writer.transport.abort()
    await wait_until(lambda: gateway.context.deployment.counters.num_in_flight == 0)


async def test_a_client_that_reads_nothing_is_left(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, idle_timeout_s=0.3) as gateway, connect(gateway) as wire:
        gateway.engine.num_words = 400_000
        wire.writer.write(chat(gateway, stream=True))
        stable = gateway.context.deployment.view.stable or ""
        await wait_until(lambda: gateway.context.deployment.in_flight(stable) == 1)
        await wait_until(lambda: gateway.context.deployment.in_flight(stable) == 0, timeout_s=30)
        assert gateway.context.deployment.counters.num_in_flight == 0
        assert gateway.context.deployment.counters.failed_requests == 0


def break_off(gateway: Running) -> bytes:
    """A request whose second chunk is none."""
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {gateway.key}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    return head.encode() + b"2\r\n{}\r\nzz\r\n"


@pytest.mark.parametrize("num_ours", [0, 1, 2])
async def test_answers_before_a_broken_request_go_out(
    gateway: Running, num_ours: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Those that FastAPI makes as well, and nothing is written to a connection that was closed."""
    async with connect(gateway) as wire:
        wire.writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + chat(gateway) * num_ours + break_off(gateway))
        answers = [await wire.read_answer() for _ in range(1 + num_ours)]
        assert [status for status, _, _ in answers] == [200] * (1 + num_ours)
        assert ["connection" in headers for _, headers, _ in answers] == [False] * num_ours + [True]
        assert await wire.is_closed()
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_pipelined_answer_that_takes_long_is_no_silence(
    tmp_path: Path, protocols: list[ServingProtocol]
) -> None:
    async with run_gateway(tmp_path, body_timeout_s=0.2) as gateway, connect(gateway) as wire:
        gateway.engine.delay_s = 1.0
        wire.writer.write(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + chat(gateway))
        assert [(await wire.read_answer())[0] for _ in range(2)] == [200, 200]
        assert await wire.is_closed()  # once it is silent


async def test_a_client_that_resets_its_connection_leaves_no_timer(
    protocols: list[ServingProtocol], gateway: Running
) -> None:
    gateway.engine.delay_s = 0.1
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway))
        await wait_until(lambda: len(gateway.engine.requests) == 1)
        wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    protocol = protocols[-1]
    await wait_until(lambda: protocol not in protocol.connections)
    assert protocol.timeout_keep_alive_task is None


@pytest.mark.parametrize("start", ["", "answered", "early"])
async def test_empty_lines_and_ends_of_bodies_keep_no_connection_open(
    tmp_path: Path, protocols: list[ServingProtocol], start: str
) -> None:
    async with run_gateway(tmp_path, body_timeout_s=0.5) as gateway, connect(gateway) as wire:
        if start == "answered":
            wire.writer.write(chat(gateway) + b"\r\n")
            assert (await wire.read_answer())[0] == 200
        if start == "early":
            wire.writer.write(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n")
            assert (await wire.read_answer())[0] == 404
            wire.writer.write(b"body")
        wire.writer.write(b"\r\n")
        assert await wire.is_closed()


async def test_the_head_of_a_request_is_not_counted_with_the_ones_before_it(gateway: Running) -> None:
    requests = chat(gateway, "X-Long: " + "y" * 50_000) * 5
    async with connect(gateway) as wire:
        for i in range(0, len(requests), 80_000):  # each piece begins and ends in a head, but not in the same
            wire.writer.write(requests[i : i + 80_000])
            await asyncio.sleep(0.05)
        assert [(await wire.read_answer())[0] for _ in range(5)] == [200] * 5


async def test_hundreds_of_pipelined_requests_that_are_refused_at_once_are_all_answered(gateway: Running) -> None:
    gateway.engine.delay_s = 0.1
    async with connect(gateway) as wire:
        wire.writer.write(chat(gateway) + f"POST {PATH} HTTP/1.1\r\n\r\n".encode() * 1000)
        assert [(await wire.read_answer())[0] for _ in range(1001)] == [200] + [401] * 1000


async def test_a_client_that_reads_no_answers_is_not_read_until_it_does(
    gateway: Running, protocols: list[ServingProtocol]
) -> None:
    requests, num = f"POST {PATH} HTTP/1.1\r\n\r\n".encode() * 1000, 0
    async with connect(gateway) as wire:
        client = wire.writer.get_extra_info("socket")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await wait_until(lambda: protocols[-1].client == wire.writer.get_extra_info("sockname"))
        flow, state = protocols[-1].flow, protocols[-1].server_state
        while not flow.write_paused:
            wire.writer.write(requests)
            num += 1000
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        num_answered = state.total_requests
        wire.writer.write(requests)
        num += 1000
        await asyncio.sleep(0.5)  # longer than it may be silent
        assert state.total_requests == num_answered
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1_000_000)
        assert {(await wire.read_answer())[0] for _ in range(num)} == {401}


def test_a_connection_is_read_once_in_a_turn_of_the_loop(tmp_path: Path, protocols: list[ServingProtocol]) -> None:
    def send(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as client, contextlib.suppress(TimeoutError):
            client.settimeout(0.5)
            for _ in range(1000):
                client.sendall(f"POST {PATH} HTTP/1.1\r\n\r\n".encode() * 1000)

    async def serve() -> int:
        async with run_gateway(tmp_path) as gateway:
            sent = asyncio.create_task(asyncio.to_thread(send, int(gateway.url.rsplit(":", 1)[1])))
            await wait_until(lambda: protocols[-1].flow.write_paused)
            num_unread_bytes = protocols[-1].transport.get_write_buffer_size()
            await sent
            return num_unread_bytes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # what the gateway runs on
        assert runner.run(serve()) < 8_000_000  # the answers to what one read holds

"""The client to the engines against servers that behave well, badly and slowly."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from gateway.errors import EngineInterrupted, EngineUnavailable
from gateway.http.upstream import Upstream
from gateway.sections.serving import GatewaySection

WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head + await reader.readexactly(size)


class Server:
    """An engine whose every connection is handled by one function."""

    def __init__(self, talk: Talk) -> None:
        self._talk = talk
        self.num_connections = 0
        self.num_lost = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._talk(reader, writer)
        writer.close()


@asynccontextmanager
async def serve(talk: Talk, **settings: float) -> AsyncIterator[tuple[Upstream, str, Server]]:
    served = Server(talk)
    server = await asyncio.start_server(served.handle, "127.0.0.1", 0)
    upstream = Upstream(GatewaySection.model_validate(settings))
    sweeping = asyncio.create_task(upstream.run())
    try:
        yield upstream, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", served
    finally:
        sweeping.cancel()
        upstream.close()
        server.close()


async def test_requests_share_a_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = await read_request(reader)
            writer.write(WHOLE + request[-7:])

    async with serve(talk) as (upstream, url, server):
        for i in range(5):
            answer = await upstream.post(url, b"/v1/x", b"body-%02d" % i, is_stream=False, headers=b"x-a: b\r\n")
            assert (answer.status, answer.body, answer.content_type) == (200, b"body-%02d" % i, b"application/json")
        await asyncio.gather(*(upstream.post(url, b"/v1/x", b"1234567", is_stream=False) for _ in range(3)))
    assert server.num_connections == 3


async def test_the_limit_of_connections_makes_requests_wait_their_turn() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(0.01)
            writer.write(WHOLE + b"1234567")

    async with serve(talk, max_upstream_connections=2) as (upstream, url, server):
        answers = await asyncio.gather(*(upstream.post(url, b"/", b"", is_stream=False) for _ in range(20)))
    assert {answer.body for answer in answers} == {b"1234567"}
    assert server.num_connections == 2


async def test_a_pooled_connection_that_the_engine_closed_costs_nothing() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(WHOLE + b"1234567")
        await read_request(reader)  # takes the second request, and goes away without a word

    async with serve(talk) as (upstream, url, server):
        for _ in range(3):
            assert (await upstream.post(url, b"/", b"", is_stream=False)).status == 200
    assert server.num_connections == 3


async def test_a_connection_that_was_never_good_is_an_engine_that_is_away() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)

    async with serve(talk) as (upstream, url, server):
        with pytest.raises(EngineUnavailable):
            await upstream.post(url, b"/", b"", is_stream=False)
        assert server.num_connections == 1
        with pytest.raises(EngineUnavailable):
            await upstream.post("http://127.0.0.1:9", b"/", b"", is_stream=True)


async def test_an_answer_that_stops_halfway_was_interrupted() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(WHOLE + b"123")

    async with serve(talk) as (upstream, url, _):
        with pytest.raises(EngineInterrupted):
            await upstream.post(url, b"/", b"", is_stream=False)


async def test_a_stream_is_forwarded_as_it_comes_and_its_loss_is_told() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        writer.write(CHUNKED + b"3\r\none\r\n3\r\ntwo\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"5\r\nthree\r\n" + (b"0\r\n\r\n" if b"good" in request else b""))

    async with serve(talk) as (upstream, url, _):
        for body, is_good in ((b"good", True), (b"bad!", False)):
            got: list[bytes] = []
            answer = await upstream.post(url, b"/", body, is_stream=True)
            assert not answer.is_complete
            if is_good:
                await answer.forward(got.append)
            else:
                with pytest.raises(EngineInterrupted):
                    await answer.forward(got.append)
            assert got == [b"onetwo", b"three"]


async def test_a_stream_can_be_read_piece_by_piece() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED)
        for _ in range(100):
            writer.write(b"2710\r\n" + b"x" * 10_000 + b"\r\n")
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    async with serve(talk) as (upstream, url, _):
        answer = await upstream.post(url, b"/", b"", is_stream=True)
        size = 0
        async for piece in answer.chunks():
            size += len(piece)
            await asyncio.sleep(0.001)  # slower than the engine: it has to wait
        assert size == 1_000_000 and answer.is_complete


async def test_an_answer_tells_when_its_reader_holds_it_back_and_when_it_is_only_not_let_go_of() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED + b"3\r\none\r\n")
        await asyncio.sleep(0.05)
        writer.write(b"f4240\r\n" + b"x" * 1_000_000 + b"\r\n0\r\n\r\n")

    async with serve(talk) as (upstream, url, _):
        told: list[bool] = []
        answer = await upstream.post(url, b"/", b"", is_stream=True)
        answer.tell_pauses(told.append)
        async with asyncio.timeout(5):
            while not told:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert told == [True]
            async for _ in answer.chunks():
                await asyncio.sleep(0.001)
        assert told[:3] == [True, False, True] and told[-1] and answer.is_complete
        num_told = len(told)
        for _ in range(2):
            answer.close()
        assert told[num_told:] == [False]


async def test_a_body_without_a_length_ends_with_its_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall there is")

    async with serve(talk) as (upstream, url, _):
        assert (await upstream.post(url, b"/", b"", is_stream=False)).body == b"all there is"


async def test_silence_before_and_after_the_first_byte_are_told_apart() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await read_request(reader)
        if b"begin" in request:
            writer.write(CHUNKED + b"1\r\nx\r\n")
        await asyncio.sleep(30)

    async with serve(talk, first_byte_timeout_s=0.2, idle_timeout_s=0.2, answer_timeout_s=0.2) as (upstream, url, _):
        for is_stream in (True, False):
            with pytest.raises(TimeoutError):
                await upstream.post(url, b"/", b"", is_stream=is_stream)
        answer = await upstream.post(url, b"/", b"begin", is_stream=True)
        with pytest.raises(EngineInterrupted, match="silent"):
            await answer.forward(lambda _: None)


async def test_closing_an_answer_that_is_not_complete_closes_its_connection() -> None:
    left = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(CHUNKED + b"1\r\nx\r\n")
        with suppress(ConnectionError):
            await reader.read()
        left.set()

    async with serve(talk) as (upstream, url, _):
        answer = await upstream.post(url, b"/", b"", is_stream=True)
        done: list[int] = []
        answer.on_close = lambda: done.append(1)
        answer.close()
        answer.close()
        await asyncio.wait_for(left.wait(), 5)
        assert done == [1]


@pytest.mark.parametrize("garbage", [b"SSH-2.0-OpenSSH\r\n\r\n", WHOLE.replace(b"7", b"seven")])
async def test_what_is_not_http_is_an_interruption(garbage: bytes) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(garbage)
        await asyncio.sleep(1)

    async with serve(talk) as (upstream, url, _):
        with pytest.raises(EngineInterrupted):
            await upstream.post(url, b"/", b"", is_stream=False)


async def test_a_refused_stream_comes_whole() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 4\r\n\r\nno")
        await asyncio.sleep(0.02)
        writer.write(b"pe")

    async with serve(talk) as (upstream, url, _):
        answer = await upstream.post(url, b"/", b"", is_stream=True)
        assert (answer.status, answer.body, answer.is_complete) == (400, b"nope", True)


async def test_own_calls_have_a_time_limit() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /v1/models"):
            writer.write(WHOLE + b"1234567")
        await asyncio.sleep(5)

    async with serve(talk) as (upstream, url, _):
        assert await upstream.call(url, "/v1/models", None, timeout_s=5.0) == (200, b"1234567")
        with pytest.raises(EngineUnavailable, match="no answer in time"):
            await upstream.call(url, "/hang", None, timeout_s=0.1)


async def test_an_own_call_carries_its_token_and_no_other_call_does() -> None:
    heads: list[bytes] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            heads.append(await read_request(reader))
            writer.write(WHOLE + b"1234567")

    async with serve(talk) as (upstream, url, _):
        for token in ("told", ""):
            await upstream.call(url, "/rounds", {}, timeout_s=5.0, token=token)
    assert b"\r\nauthorization: Bearer told\r\n" in heads[0]
    assert b"authorization" not in heads[1]


async def test_own_calls_do_not_wait_for_requests_that_use_every_connection() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (await reader.readuntil(b"\r\n\r\n")).startswith(b"POST"):
            await asyncio.sleep(5)
        writer.write(WHOLE + b"1234567")

    async with serve(talk, max_upstream_connections=1) as (upstream, url, server), asyncio.TaskGroup() as group:
        asked = [group.create_task(upstream.post(url, b"/", b"", is_stream=False)) for _ in range(2)]
        await asyncio.sleep(0.05)  # one is being answered, the other waits for its turn
        assert await upstream.call(url, "/v1/models", None, timeout_s=0.5) == (200, b"1234567")
        assert server.num_connections == 2  # the other still waits
        for task in asked:
            task.cancel()


async def test_who_gives_up_connecting_lets_the_next_in() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(WHOLE + b"1234567")

    async with serve(talk, max_upstream_connections=1) as (upstream, url, _):
        first, second = (asyncio.create_task(upstream.post(url, b"/", b"", is_stream=False)) for _ in range(2))
        await asyncio.sleep(0)  # the first is connecting, the second waits for its turn
        first.cancel()
        assert (await asyncio.wait_for(second, 5)).body == b"1234567"


async def test_what_comes_before_an_answer_and_after_its_body_is_no_part_of_it() -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nContent-Type: text/early\r\n\r\n"
    late = b"7\r\n1234567\r\n0\r\nContent-Type: text/late\r\n\r\n"

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(early)
            await asyncio.sleep(0.02)
            writer.write(CHUNKED + late)

    async with serve(talk) as (upstream, url, server):
        for _ in range(2):
            answer = await upstream.post(url, b"/", b"", is_stream=False)
            assert (answer.status, answer.content_type, answer.body) == (200, b"text/event-stream", b"1234567")
    assert server.num_connections == 1


async def test_an_engine_that_only_says_continue_has_not_answered() -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        await writer.drain()

    async with serve(talk) as (upstream, url, _):
        with pytest.raises(EngineInterrupted):
            await upstream.post(url, b"/", b"", is_stream=False)

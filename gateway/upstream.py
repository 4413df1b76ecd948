"""The client to the engines: our own small HTTP/1.1 over pooled keep-alive connections.

Promises: one write a request, no task and no timer of its own; a request fails before its first byte
(EngineUnavailable, TimeoutError) or after it (EngineInterrupted), never silently; closing an answer that is not
complete closes its connection, which makes the engine stop generating. Does not retry, but for a pooled connection
that the engine had closed meanwhile: attempts.py does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from gateway.errors import EngineInterrupted, EngineUnavailable
from gateway.settings import GatewaySection

_CONNECT_TIMEOUT_S = 5.0
_IDLE_LIMIT_S = 4.0  # vLLM's server closes a connection after 5 s of silence: be first
_SWEEP_S = 0.25
_MAX_BUFFERED = 262_144  # bytes read ahead of whoever takes them
_NEVER = float("inf")


class EngineAnswer:
    """An answer on its way. `body` is there once it is complete; a stream is forwarded or iterated, then closed."""

    __slots__ = (
        "_connection", "_error", "_first_wins", "_num_buffered", "_pieces", "_sink", "_waiter",
        "content_type", "engine", "is_complete", "on_close", "status",
    )  # fmt: skip

    def __init__(self, engine: str, connection: _Connection, *, is_stream: bool) -> None:
        self.engine = engine
        self.status = 0
        self.content_type = b"application/json"
        self.is_complete = False
        self.on_close: Callable[[], None] | None = None
        self._connection: _Connection | None = connection
        self._first_wins = is_stream
        self._pieces: list[bytes] = []
        self._num_buffered = 0
        self._sink: Callable[[bytes], None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None

    @property
    def body(self) -> bytes:
        """What has come and was not taken: the whole body of a complete answer."""
        if len(self._pieces) > 1:
            self._pieces = [b"".join(self._pieces)]
        return self._pieces[0] if self._pieces else b""

    @property
    def error(self) -> Exception | None:
        """What broke it, if anything did."""
        return self._error

    async def forward(self, sink: Callable[[bytes], None]) -> None:
        """Give every read to `sink`, as it comes, until the answer is complete. Raises EngineInterrupted."""
        first = self._take()
        if first:
            sink(first)
        self._sink = sink
        await self._wait_until_done()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; what is not asked for waits in the engine's socket. Raises EngineInterrupted."""
        while True:
            if data := self._take():
                yield data
            elif self.is_complete or self._error is not None:
                break
            else:
                await self._wait()
        self._raise_error()

    def pause(self) -> None:
        """Read no more from the engine for now."""
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()

    def close(self) -> None:
        """Let go of the answer; closes the connection if it is not complete. Harmless to repeat."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon(self)
        done, self.on_close = self.on_close, None
        if done is not None:
            done()

    # What its connection tells it

    def note_data(self, data: bytes) -> None:
        if self._sink is not None:
            self._sink(data)
            return
        self._pieces.append(data)
        self._num_buffered += len(data)
        if self._first_wins and self.status == 200:
            self._wake()
            if self._num_buffered > _MAX_BUFFERED:
                self.pause()

    def note_complete(self) -> None:
        self.is_complete = True
        self._connection = None
        self._wake()

    def note_failure(self, error: Exception) -> None:
        self._error = error
        self._connection = None
        self._wake()

    # Waiting

    async def wait_for_start(self) -> None:
        """Until the first bytes of a stream that begins well, else until all has come. Raises what went wrong."""
        while not self.is_complete and self._error is None:
            if self._first_wins and self.status == 200 and self._pieces:
                return
            await self._wait()
        self._raise_error()

    async def _wait_until_done(self) -> None:
        while not self.is_complete and self._error is None:
            await self._wait()
        self._raise_error()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _take(self) -> bytes:
        data = self.body
        if self._pieces:
            self._pieces = []
            self._num_buffered = 0
            self.resume()
        return data

    def _raise_error(self) -> None:
        if self._error is not None:
            raise self._error


class _Connection(asyncio.Protocol):
    """One keep-alive connection; answers one request at a time."""

    def __init__(self, pool: _Pool) -> None:
        self.pool = pool
        self.deadline = _NEVER  # on the loop's clock
        self.idle_since = 0.0
        self.is_reused = False
        self.has_bytes = False
        self._idle_timeout_s = 0.0
        self._answer: EngineAnswer | None = None
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._batch: list[bytes] = []
        self._ends = False  # the message that is being read is complete
        self._has_length = self._keeps_alive = False
        self._is_paused = False

    def send(self, answer: EngineAnswer, data: bytes, first_timeout_s: float, idle_timeout_s: float) -> None:
        assert self._transport is not None
        self._answer = answer
        self._has_length = self.has_bytes = False
        self._idle_timeout_s = idle_timeout_s
        self.deadline = self.pool.now() + first_timeout_s
        self._transport.write(data)

    @property
    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def abandon(self, answer: EngineAnswer) -> None:
        """The answer is not wanted any more."""
        if self._answer is answer:
            self._answer = None
            self.drop()

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def expire(self) -> None:
        """The deadline has passed."""
        if self.has_bytes:
            self._fail(EngineInterrupted(f"{self.pool.url}: silent for {self._idle_timeout_s:g} s"))
        else:
            self._fail(TimeoutError(f"{self.pool.url} did not answer in time"))
        self.drop()

    def give_up(self) -> None:
        """The engine hangs: the request fails as if the engine had gone, unless its answer has begun."""
        if self._answer is not None and not self.has_bytes:
            self.is_reused = False  # not to be sent to it again
            self._fail(EngineUnavailable(f"{self.pool.url} hangs"))
            self.drop()

    def pause(self) -> None:
        if not self._is_paused and self._transport is not None:
            self._is_paused = True
            self.deadline = _NEVER  # it is the reader who is slow
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self.deadline = self.pool.now() + self._idle_timeout_s
            self._transport.resume_reading()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        answer = self._answer
        if answer is None:  # nobody asked: the connection cannot be trusted any more
            self.drop()
            return
        self.has_bytes = True
        self.deadline = self.pool.now() + self._idle_timeout_s
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(EngineInterrupted(f"{self.pool.url} does not speak HTTP: {error}"))
            self.drop()
            return
        if self._batch:
            batch, self._batch = self._batch, []
            answer.note_data(batch[0] if len(batch) == 1 else b"".join(batch))
        if self._ends:
            self._ends = False
            self._complete()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.pool.forget(self)
        if self._answer is None:
            return
        if self._answer.status and not self._has_length and error is None:
            self._complete()  # a body without a length ends with its connection
        elif self.has_bytes:
            self._fail(EngineInterrupted(f"{self.pool.url}: {error or 'the connection was closed'}"))
        else:
            self._fail(EngineUnavailable(f"{self.pool.url}: {error or 'the connection was closed'}"))

    # The parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) == 12 and name.lower() == b"content-type":
            assert self._answer is not None
            self._answer.content_type = value
        elif len(name) in (14, 17) and name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        assert self._answer is not None
        self._answer.status = self._parser.get_status_code()
        self._keeps_alive = self._parser.should_keep_alive()  # the parser forgets at the end of the message

    def on_body(self, data: bytes) -> None:
        self._batch.append(data)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._ends = True

    def _complete(self) -> None:
        answer, self._answer = self._answer, None
        self.deadline = _NEVER
        if self._transport is not None and self._has_length and self._keeps_alive:
            self.resume()
            self.deadline = _NEVER
            self.pool.give_back(self)
        else:
            self.drop()
        assert answer is not None
        answer.note_complete()

    def _fail(self, error: Exception) -> None:
        answer, self._answer = self._answer, None
        self.deadline = _NEVER
        if answer is not None:
            answer.note_failure(error)


class _Pool:
    """The connections to one engine, newest first."""

    def __init__(self, url: str, limit: int, loop: asyncio.AbstractEventLoop) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, url
        self.url = url
        self.now = loop.time
        self.open: set[_Connection] = set()
        self._loop = loop
        self._host, self._is_tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._host_line = b" HTTP/1.1\r\nhost: " + parts.netloc.rpartition("@")[2].encode() + b"\r\n"
        self._limit = limit
        self._idle: deque[_Connection] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._num_opening = 0

    def head(self, method: bytes, path: bytes) -> bytes:
        return method + b" " + self._prefix + path + self._host_line

    def take_idle(self) -> _Connection | None:
        """The connection used last, which the engine is least likely to have closed."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                connection.is_reused = True
                return connection
        return None

    async def take(self) -> _Connection:
        """A connection: an idle one, or a new one; waits its turn at the limit. Raises EngineUnavailable."""
        while True:
            if (connection := self.take_idle()) is not None:
                return connection
            if len(self.open) + self._num_opening < self._limit:
                return await self.connect()
            turn: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._let_next_in()
                raise

    async def connect(self) -> _Connection:
        context = ssl.create_default_context() if self._is_tls else None
        self._num_opening += 1
        is_there = False
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await self._loop.create_connection(
                    lambda: _Connection(self), self._host, self._port, ssl=context
                )
            is_there = connection.is_usable
        except (OSError, TimeoutError) as error:
            raise EngineUnavailable(f"{self.url}: {error or 'no connection in time'}") from error
        finally:
            self._num_opening -= 1
            if not is_there:
                self._let_next_in()
        if not is_there:
            raise EngineUnavailable(f"{self.url}: the connection was closed at once")
        self.open.add(connection)
        return connection

    def give_back(self, connection: _Connection) -> None:
        connection.idle_since = self.now()
        self._idle.append(connection)
        self._let_next_in()

    def forget(self, connection: _Connection) -> None:
        self.open.discard(connection)
        self._let_next_in()

    def sweep(self, now: float) -> None:
        """End what is past its deadline, and connections that nobody has used for a while."""
        for connection in [each for each in self.open if each.deadline < now]:
            connection.expire()
        while self._idle and self._idle[0].idle_since < now - _IDLE_LIMIT_S:
            self._idle.popleft().drop()

    def drop_waiting(self) -> None:
        """Fail every request that has not had its first byte, so that it can be asked elsewhere."""
        for connection in list(self.open):
            connection.give_up()

    def _let_next_in(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return


class Upstream:
    """Requests to engines. `run` must run: it keeps the deadlines."""

    def __init__(self, settings: GatewaySection) -> None:
        self._settings = settings
        self._pools: dict[str, _Pool] = {}

    async def run(self) -> None:
        """Look at the deadlines for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            for pool in self._pools.values():
                pool.sweep(loop.time())

    def close(self) -> None:
        """Drop every connection."""
        for pool in self._pools.values():
            for connection in list(pool.open):
                connection.drop()

    async def post(
        self, engine: str, path: bytes, body: bytes, *, is_stream: bool, headers: bytes = b""
    ) -> EngineAnswer:
        """Send a request; its answer once complete or, of a stream that begins well, once its first bytes are there.

        `headers`: whole lines. Raises EngineUnavailable, EngineInterrupted, TimeoutError.
        """
        wait_s = self._settings.first_byte_timeout_s if is_stream else self._settings.answer_timeout_s
        return await self._send(engine, b"POST", path, body, headers, is_stream, wait_s, self._settings.idle_timeout_s)

    def drop_waiting(self, engine: str) -> None:
        """Fail the engine's requests that have not had their first byte."""
        if engine in self._pools:
            self._pools[engine].drop_waiting()

    async def call(
        self, engine: str, path: str, payload: dict[str, Any] | None, *, timeout_s: float
    ) -> tuple[int, bytes]:
        """A short call of our own (adapters, probes): POST with a payload, GET without. Raises EngineUnavailable."""
        method = b"GET" if payload is None else b"POST"
        body = b"" if payload is None else msgspec.json.encode(payload)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await self._send(engine, method, path.encode(), body, b"", False, timeout_s, timeout_s)
        except (EngineInterrupted, TimeoutError) as error:
            raise EngineUnavailable(f"{engine}: {error or 'no answer in time'}") from error
        return answer.status, answer.body

    async def _send(
        self, engine: str, method: bytes, path: bytes, body: bytes, headers: bytes, is_stream: bool,
        first_timeout_s: float, idle_timeout_s: float,
    ) -> EngineAnswer:  # fmt: skip
        pool = self._pools.get(engine)
        if pool is None:
            limit = self._settings.max_upstream_connections
            pool = self._pools[engine] = _Pool(engine, limit, asyncio.get_running_loop())
        data = b"%bcontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
            pool.head(method, path), headers, len(body), body,
        )  # fmt: skip
        connection = pool.take_idle() or await pool.take()
        while True:
            answer = EngineAnswer(engine, connection, is_stream=is_stream)
            try:
                connection.send(answer, data, first_timeout_s, first_timeout_s if not is_stream else idle_timeout_s)
                await answer.wait_for_start()
                return answer
            except EngineUnavailable:
                if not connection.is_reused:
                    raise
                connection = await pool.connect()  # the engine closed it between two requests
            except BaseException:
                answer.close()
                raise

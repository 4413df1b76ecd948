"""One keep-alive connection to an engine, and the answer that comes over it.

The parser's callbacks run in the read itself, and so does what waited for the answer: no task, no timer. Whoever
holds an answer either waits for all of it, has every read forwarded, or iterates; a reader that is slow holds the
engine back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Protocol, cast

import httptools

from gateway.errors import EngineInterrupted, EngineLost, StaleConnection
from gateway.http.eager import Waitable
from gateway.http.outbox import Outbox

_MAX_BUFFERED = 262_144  # bytes read ahead of whoever takes them
_NEVER = float("inf")


class EngineAnswer(Waitable):
    """An answer on its way. `body` is there once it is complete; a stream is forwarded or iterated, then closed."""

    status = 0
    content_type = b"application/json"
    is_complete = False
    error: Exception | None = None  # what broke it
    on_close: Callable[[], None] | None = None
    _on_pause: Callable[[bool], None] | None = None
    _is_paused = False  # its reader is not done, and nothing more is read from the engine
    _num_buffered = 0
    _sink: Callable[[bytes], None] | None = None

    def __init__(self, engine: str, connection: Connection, *, is_stream: bool) -> None:
        self.engine = engine
        self._connection: Connection | None = connection
        self._first_wins = is_stream
        self._pieces: list[bytes] = []

    @property
    def body(self) -> bytes:
        """What has come and was not taken: the whole body of a complete answer."""
        pieces = self._pieces
        if len(pieces) != 1:
            pieces = self._pieces = [b"".join(pieces)] if pieces else []
        return pieces[0] if pieces else b""

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
            elif self.is_complete or self.error is not None:
                break
            else:
                await self.wait()
        self._raise_error()

    def pause(self) -> None:
        """Read no more from the engine for now."""
        if self._connection is not None:
            self._connection.pause()
            self._note_paused(True)

    def resume(self) -> None:
        """Read on."""
        if self._connection is not None:
            self._connection.resume()
            self._note_paused(False)

    def tell_pauses(self, on_pause: Callable[[bool], None]) -> None:
        """Call `on_pause` with True when nothing more is read from the engine, with False when it is, or at the close."""
        self._on_pause = on_pause
        if self._is_paused:
            on_pause(True)

    def close(self) -> None:
        """Let go of the answer; closes the connection if it is not complete. Harmless to repeat."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon(self)
        self._note_paused(False)
        done, self.on_close = self.on_close, None
        if done is not None:
            done()

    # What its connection tells it

    def note_data(self, data: bytes, *, is_last: bool) -> None:
        """`is_last`: `note_complete` follows at once."""
        if self._sink is not None:
            self._sink(data)
            return
        self._pieces.append(data)
        self._num_buffered += len(data)
        if self._first_wins and self.status == 200 and not is_last:
            if self._num_buffered > _MAX_BUFFERED:
                self.pause()
            self.wake()

    def note_complete(self) -> None:
        self.is_complete = True
        self._connection = None
        if self._first_wins and self._sink is None:  # whoever iterates may take long to close it
            self._note_paused(True)
        self.wake()

    def note_failure(self, error: Exception) -> None:
        self.error = error
        self._connection = None
        self.wake()

    def _note_paused(self, is_paused: bool) -> None:
        if self._is_paused != is_paused:
            self._is_paused = is_paused
            if self._on_pause is not None:
                self._on_pause(is_paused)

    # Waiting

    @property
    def has_started(self) -> bool:
        """Whether the first bytes of a stream that begins well have come, else whether all has, or it broke."""
        if self.is_complete or self.error is not None:
            return True
        return self._first_wins and self.status == 200 and bool(self._pieces)

    async def wait_until_started(self) -> None:
        """Until `has_started`; then raises what broke it, if something did."""
        while not self.has_started:
            await self.wait()
        self._raise_error()

    async def _wait_until_done(self) -> None:
        while not self.is_complete and self.error is None:
            await self.wait()
        self._raise_error()

    def _take(self) -> bytes:
        data = self.body
        if self._pieces:
            self._pieces = []
            self._num_buffered = 0
            self.resume()
        return data

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error


class Owner(Protocol):
    """What a connection needs of the pool that it belongs to; `now` is the loop's clock."""

    url: str
    now: Callable[[], float]
    outbox: Outbox

    def give_back(self, connection: Connection) -> None:
        """It may carry another request."""

    def forget(self, connection: Connection, *, is_lost: bool) -> None:
        """It is closed. is_lost: while nothing was asked over it, and not by us."""


class Connection(asyncio.Protocol):
    """One keep-alive connection; answers one request at a time."""

    def __init__(self, pool: Owner) -> None:
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
        self._is_paused = self._is_dropped = False

    def send(self, data: bytes, timeouts_s: tuple[float, float], *, is_stream: bool) -> EngineAnswer:
        """Send a whole request; its answer, of which nothing has come. `timeouts_s`: to the first byte, between two."""
        assert self._transport is not None
        pool = self.pool
        self._answer = answer = EngineAnswer(pool.url, self, is_stream=is_stream)
        self._has_length = self.has_bytes = False
        first_timeout_s, self._idle_timeout_s = timeouts_s
        self.deadline = pool.now() + first_timeout_s
        pool.outbox.write(self._transport, data)
        return answer

    @property
    def is_usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def abandon(self, answer: EngineAnswer) -> None:
        """The answer is not wanted any more."""
        if self._answer is answer:
            self._answer = None
            self.drop()

    def drop(self) -> None:
        self._is_dropped = True
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
            self._fail(EngineLost(f"{self.pool.url} hangs"))
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
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(EngineInterrupted(f"{self.pool.url} does not speak HTTP: {error}"))
            self.drop()
            return
        is_last = self._ends
        if not is_last:
            self.deadline = self.pool.now() + self._idle_timeout_s
        if self._batch:
            batch, self._batch = self._batch, []
            answer.note_data(batch[0] if len(batch) == 1 else b"".join(batch), is_last=is_last)
        if is_last:
            self._ends = False
            if self._answer is answer:  # it was not let go of meanwhile
                self._complete()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self.pool.forget(self, is_lost=self._answer is None and not self._is_dropped)
        if self._answer is None:
            return
        reason = str(error or "") or "the connection was closed"
        if self._answer.status and not self._has_length and error is None:
            self._complete()  # a body without a length ends with its connection
        elif self.has_bytes:
            self._fail(EngineInterrupted(f"{self.pool.url}: {reason}"))
        else:
            kind = StaleConnection if self.is_reused else EngineLost
            self._fail(kind(f"{self.pool.url}: {reason}"))

    # The parser's callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        answer = self._answer
        assert answer is not None
        if answer.status:
            return  # a trailer
        name = name.lower()
        if name == b"content-type":
            answer.content_type = value
        elif name == b"content-length" or name == b"transfer-encoding":
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
        elif self._answer is not None:
            self._answer.status = 0  # the answer is still to come

    def _complete(self) -> None:
        answer, self._answer = self._answer, None
        self.deadline = _NEVER
        if self._transport is not None and self._has_length and self._keeps_alive:
            if self._is_paused:
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

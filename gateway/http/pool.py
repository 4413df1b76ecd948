"""The keep-alive connections to one engine, newest first: taken, waited for at the limit, given back, swept."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from gateway.errors import EngineUnavailable
from gateway.http.connection import Connection
from gateway.http.eager import enter_task
from gateway.http.outbox import Outbox

_CONNECT_TIMEOUT_S = 5.0
_IDLE_LIMIT_S = 4.0  # vLLM's server closes a connection after 5 s of silence: be first


class Pool:
    """The connections to one engine, newest first. on_lost: the engine closed one over which nothing was asked."""

    def __init__(
        self,
        url: str,
        limit: int,
        loop: asyncio.AbstractEventLoop,
        outbox: Outbox,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None, url
        self.url = url
        self.now = loop.time
        self.open: set[Connection] = set()
        self.loop = loop
        self.outbox = outbox
        self._host, self._is_tls = parts.hostname, parts.scheme == "https"
        self._port = parts.port or (443 if self._is_tls else 80)
        self._prefix = parts.path.rstrip("/").encode()
        self._host_line = b" HTTP/1.1\r\nhost: " + parts.netloc.rpartition("@")[2].encode() + b"\r\n"
        self._limit, self._on_lost = limit, on_lost
        self._idle: deque[Connection] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._num_opening = 0

    def render(self, method: bytes, path: bytes, headers: bytes, body: bytes) -> bytes:
        """A whole request. `headers`: whole lines."""
        return b"%b %b%b%bcontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b" % (
            method, self._prefix, path, self._host_line, headers, len(body), body,
        )  # fmt: skip

    def take_idle(self) -> Connection | None:
        """The connection used last, which the engine is least likely to have closed."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                connection.is_reused = True
                return connection
        return None

    async def take(self) -> Connection:
        """A connection: an idle one, or a new one; waits its turn at the limit. Raises EngineUnavailable."""
        while True:
            if (connection := self.take_idle()) is not None:
                return connection
            if len(self.open) + self._num_opening < self._limit:
                return await self.connect()
            turn: asyncio.Future[None] = self.loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._let_next_in()
                raise

    async def connect(self) -> Connection:
        context = ssl.create_default_context() if self._is_tls else None
        self._num_opening += 1
        is_there = False
        try:
            await enter_task()
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self), self._host, self._port, ssl=context
                )
            is_there = connection.is_usable
        except (OSError, TimeoutError) as error:
            raise EngineUnavailable(f"{self.url}: {str(error) or 'no connection in time'}") from error
        finally:
            self._num_opening -= 1
            if not is_there:
                self._let_next_in()
        if not is_there:
            raise EngineUnavailable(f"{self.url}: the connection was closed at once")
        self.open.add(connection)
        return connection

    def give_back(self, connection: Connection) -> None:
        connection.idle_since = self.now()
        self._idle.append(connection)
        if self._waiting:
            self._let_next_in()

    def forget(self, connection: Connection, *, is_lost: bool) -> None:
        self.open.discard(connection)
        self._let_next_in()
        if is_lost:
            self._on_lost()

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

    def close(self) -> None:
        """Drop every connection."""
        for connection in list(self.open):
            connection.drop()

    def _let_next_in(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return

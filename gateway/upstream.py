"""The client to the engines: one POST, its answer as bytes, told apart by whether the first byte had come.

Raises EngineUnavailable before the first byte and EngineInterrupted after it. Closing an answer closes the connection
if it was not read to its end, which makes the engine stop generating. Does not retry: attempts.py does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec

from gateway.errors import EngineInterrupted, EngineUnavailable
from gateway.settings import GatewaySection

_FAILURES = (aiohttp.ClientError, ConnectionError, OSError, TimeoutError, asyncio.IncompleteReadError)


class EngineAnswer:
    """An answer whose first bytes have come. Must be closed."""

    def __init__(self, engine: str, response: aiohttp.ClientResponse, first: bytes, idle_timeout_s: float) -> None:
        self.engine = engine
        self.status = response.status
        self.content_type = response.headers.get("content-type", "application/json")
        self.first = first
        self.on_close: Callable[[], None] = lambda: None
        self._response = response
        self._idle_timeout_s = idle_timeout_s

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes, from its first byte. Raises EngineInterrupted."""
        if self.first:
            yield self.first
        while True:
            try:
                async with asyncio.timeout(self._idle_timeout_s):
                    chunk = await self._response.content.readany()
            except _FAILURES as error:
                raise EngineInterrupted(f"{self.engine}: {error or type(error).__name__}") from error
            if not chunk:
                return
            yield chunk

    async def read(self) -> bytes:
        """The whole body. Raises EngineInterrupted."""
        return b"".join([chunk async for chunk in self.chunks()])

    def close(self) -> None:
        """Give the connection back, or close it if the answer was not read to its end; harmless to repeat."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()
        done, self.on_close = self.on_close, lambda: None
        done()


class Upstream:
    """Pooled connections to the engines."""

    def __init__(self, session: aiohttp.ClientSession, settings: GatewaySection) -> None:
        self._session = session
        self._settings = settings

    async def post(self, engine: str, path: str, body: bytes, *, is_stream: bool) -> EngineAnswer:
        """Send a request and wait for the first bytes. Raises EngineUnavailable; asyncio's TimeoutError on a hang."""
        wait_s = self._settings.first_byte_timeout_s if is_stream else self._settings.answer_timeout_s
        response: aiohttp.ClientResponse | None = None
        try:
            async with asyncio.timeout(wait_s) as limit:
                response = await self._session.post(
                    engine + path, data=body, headers={"content-type": "application/json"}, allow_redirects=False
                )
                first = await response.content.readany()
        except BaseException as error:
            if response is not None:
                response.close()
            if isinstance(error, TimeoutError) and limit.expired():
                raise
            if isinstance(error, _FAILURES):
                raise EngineUnavailable(f"{engine}: {error or type(error).__name__}") from error
            raise
        if not first and is_stream and response.status == 200:
            response.close()
            raise EngineUnavailable(f"{engine}: the answer ended before its first byte")
        return EngineAnswer(engine, response, first, self._settings.idle_timeout_s)

    async def call(
        self, engine: str, path: str, payload: dict[str, Any] | None, *, timeout_s: float
    ) -> tuple[int, bytes]:
        """A short call of our own (adapters, probes): POST with a payload, GET without. Raises EngineUnavailable."""
        method = "GET" if payload is None else "POST"
        data = None if payload is None else msgspec.json.encode(payload)
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._session.request(
                    method, engine + path, data=data, headers={"content-type": "application/json"}
                ) as response,
            ):
                return response.status, await response.read()
        except _FAILURES as error:
            raise EngineUnavailable(f"{engine}: {error or type(error).__name__}") from error


def open_session(settings: GatewaySection) -> aiohttp.ClientSession:
    """The session for Upstream; its owner closes it."""
    connector = aiohttp.TCPConnector(limit=settings.max_upstream_connections, keepalive_timeout=30)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, auto_decompress=True, trust_env=False)

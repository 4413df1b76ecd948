"""The least that an ASGI app and aiohttp's client can do between a client and an engine: pass bytes on.

The yardstick of streaming. No keys, no model names, no errors of its own. The engine's URL is in ENGINE_URL.
"""

import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp

Message = MutableMapping[str, Any]
_KEPT = (b"content-type", b"content-length")


class RawProxy:
    """One session to one engine, opened when the server starts."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._session: aiohttp.ClientSession | None = None

    async def __call__(
        self, scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] == "lifespan":
            return await self._live(receive, send)
        assert self._session is not None
        body, has_more = b"", True
        while has_more:
            message = await receive()
            body += message.get("body", b"")
            has_more = message.get("more_body", False)
        async with self._session.request(
            scope["method"], self._engine + scope["path"], data=body, headers={"content-type": "application/json"}
        ) as answer:
            headers = [(name.lower(), value) for name, value in answer.raw_headers if name.lower() in _KEPT]
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _live(
        self, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        await receive()
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._session.close()
        await send({"type": "lifespan.shutdown.complete"})


app = RawProxy(os.environ.get("ENGINE_URL", ""))

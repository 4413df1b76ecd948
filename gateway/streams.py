"""Sends a stream to a client, and stops making it as soon as the client has gone.

What feeds the stream is closed exactly once, also when the client leaves before the first byte.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from gateway.errors import error_body
from gateway.sse import DONE, encode_event

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


def failure_events() -> bytes:
    """What ends a stream whose engine went away."""
    return encode_event(error_body(502, "The engine stopped in the middle of its answer.", code="engine_lost")) + DONE


async def run_until_disconnect(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; cancels it and raises ClientGone if the client disconnects first. The body must be read."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_wait_for_disconnect(receive))
    try:
        await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, watch):
            if not each.done():
                each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events from a generator; `on_close` runs when the stream is over, however it ended."""

    def __init__(
        self,
        source: AsyncGenerator[bytes, None],
        on_close: Callable[[], None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(headers=headers, media_type="text/event-stream")
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._source = source
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream."""
        try:
            await run_until_disconnect(receive, self._send(send))
        except ClientGone:
            pass
        finally:
            try:
                await self._source.aclose()
            finally:
                self._on_close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for data in self._source:
            await send({"type": "http.response.body", "body": data, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

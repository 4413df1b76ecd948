"""A proxy before a real engine that lets requests to one checkpoint go wrong, as a bad build or a bad kernel would."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Literal

import aiohttp
from aiohttp import web

Fault = Literal["", "slow", "single fails", "stream fails", "all fail"]
DELAY_S = 1.5
FAILING_SHARE = 0.6
_HOP = frozenset({"content-length", "transfer-encoding", "connection", "content-encoding", "host"})


class FaultyEngine:
    """Passes everything on. `checkpoint`'s completions have `fault`; half of its failing streams break after their first bytes."""

    def __init__(self, engine_url: str, session: aiohttp.ClientSession) -> None:
        self.fault: Fault = ""
        self.checkpoint = ""
        self._engine_url, self._session = engine_url, session
        self._rng = random.Random(0)
        self._runner: web.AppRunner | None = None

    async def start(self, port: int) -> None:
        """Listen on loopback."""
        app = web.Application(client_max_size=64 * 2**20)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()

    async def stop(self) -> None:
        """Stop listening."""
        if self._runner is not None:
            await self._runner.cleanup()

    def _draw_fault(self, path: str, body: bytes) -> tuple[Fault, bool]:
        """What happens to this request, and whether it is streamed."""
        if not path.endswith("/completions") or not self.fault:
            return "", False
        asked = json.loads(body)
        is_stream, is_probe = bool(asked.get("stream")), "messages" not in asked
        if asked.get("model") != self.checkpoint or is_probe:
            return "", is_stream
        is_hit = self.fault in ("slow", "all fail") or self.fault == ("stream fails" if is_stream else "single fails")
        if not is_hit or (self.fault != "slow" and self._rng.random() >= FAILING_SHARE):
            return "", is_stream
        return self.fault, is_stream

    async def _pass_on(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        fault, is_stream = self._draw_fault(request.path, body)
        breaks_late = fault not in ("", "slow") and is_stream and self._rng.random() < 0.5
        if fault == "slow":
            await asyncio.sleep(DELAY_S)
        elif fault and not breaks_late:
            return web.json_response({"error": {"message": "out of memory", "type": "server_error"}}, status=500)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        url = self._engine_url + request.path_qs
        async with self._session.request(request.method, url, data=body, headers=headers) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            passed = web.StreamResponse(status=answer.status, headers=kept)
            await passed.prepare(request)
            async for piece in answer.content.iter_any():
                try:
                    await passed.write(piece)
                except ConnectionResetError:  # whoever asked has gone
                    break
                if breaks_late and request.transport is not None:
                    request.transport.abort()
                    break
            else:
                await passed.write_eof()
            return passed

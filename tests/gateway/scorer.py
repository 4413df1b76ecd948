"""A scorer that picks what a test says, or fails as it is told to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class FakeScorer:
    """informative, telling: places that it picks; answer: what it says instead, (status, body)."""

    informative: tuple[int, int] = (1, 3)
    telling: tuple[int, int] = (2, 0)
    answer: tuple[int, bytes] | None = None
    never: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)

    def build(self) -> web.Application:
        """The scorer's app."""
        app = web.Application()
        app.router.add_post("/score", self._score)
        return app

    async def _score(self, request: web.Request) -> web.Response:
        self.requests.append(await request.json())
        if self.never:
            await asyncio.Event().wait()
        if self.answer is not None:
            return web.Response(status=self.answer[0], body=self.answer[1])
        draws = [[0.0, 1.0]] * len(self.requests[-1]["candidates"])
        said = {"version": 7, "informative": self.informative, "telling": self.telling, "draws": draws}
        return web.Response(body=json.dumps(said).encode(), content_type="application/json")

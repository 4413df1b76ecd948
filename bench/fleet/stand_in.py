"""An engine that costs nothing, for a look at the bench without vLLM: `python -m bench.fleet.stand_in HOST PORT`.

Answers as the chaos bench's stand-in does, streams too, and writes better the later the checkpoint, so that a rollout has
something to find. Says what it does in vLLM's metrics.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from typing import Any

from aiohttp import web

from bench.chaos.engine import Engine, refuse
from prefloop.demo.worlds.capitals import STYLES, answer_in_style

_PIECE_S = 0.02


class StreamingEngine(Engine):
    """The chaos bench's engine, which streams and improves."""

    def __init__(self) -> None:
        super().__init__()
        self._started_at, self._num_tokens = time.time(), 0

    def build(self) -> web.Application:
        """The engine's app."""
        app = super().build()
        app.router.add_get("/metrics", self._show_metrics)
        return app

    async def _show_metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            text=f"#\nprocess_start_time_seconds {self._started_at}\nvllm:generation_tokens_total {self._num_tokens}\n"
        )

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        manifest = self._manifests.get(asked["model"])
        if manifest is None:
            return refuse(404, f"The model `{asked['model']}` does not exist.")
        rng = random.Random(asked.get("seed"))
        style = STYLES[0] if manifest["number"] and rng.random() < 0.9 else rng.choice(STYLES)
        text = answer_in_style(self._questions[asked["messages"][-1]["content"]], style, rng)
        self._num_tokens += 8
        if asked.get("stream"):
            return await _stream(request, asked, text)
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
        usage = {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20}
        return web.json_response({**_head(asked, "chat.completion"), "choices": [choice], "usage": usage})


async def _stream(request: web.Request, asked: dict[str, Any], text: str) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    head = _head(asked, "chat.completion.chunk")
    deltas: list[tuple[dict[str, Any], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [
        ({"content": f"{word} " if i < len(text.split()) - 1 else word}, None) for i, word in enumerate(text.split())
    ]
    deltas.append(({}, "stop"))
    for delta, reason in deltas:
        event = {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await asyncio.sleep(_PIECE_S)
    if (asked.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20}
        await response.write(b"data: " + json.dumps({**head, "choices": [], "usage": usage}).encode() + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    await response.write_eof()
    return response


def _head(asked: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{random.getrandbits(64):x}", "object": kind, "created": 1, "model": asked["model"]}


if __name__ == "__main__":
    web.run_app(StreamingEngine().build(), host=sys.argv[1], port=int(sys.argv[2]), print=None, access_log=None)

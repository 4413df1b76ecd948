"""The engine's stand-in: answers at once what people can tell apart, in a process of its own that may be killed.

`python -m bench.chaos.engine PORT`. It knows vLLM's adapters, and proves an adapter with what the manifest beside it
says, so that a gateway that loaded the wrong directory is found out. Like vLLM it forgets everything when it ends.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

from aiohttp import web

from prefloop.demo.worlds.capitals import STYLES, Question, all_questions, answer_in_style


class Engine:
    """Adapters by name, with the manifests that they came with."""

    def __init__(self) -> None:
        self._manifests: dict[str, dict[str, Any]] = {}
        self._questions: dict[str, Question] = {question.text: question for question in all_questions()}

    def build(self) -> web.Application:
        """The engine's app."""
        app = web.Application()
        app.router.add_get("/v1/models", self._list_models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/completions", self._prove)
        app.router.add_post("/v1/chat/completions", self._answer)
        return app

    async def _list_models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in ["base", *self._manifests]]})

    async def _load(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked["lora_name"] in self._manifests:
            return refuse(400, f"{asked['lora_name']} has already been loaded")
        try:
            manifest = json.loads((Path(asked["lora_path"]) / "manifest.json").read_text())
        except OSError:  # in vLLM's words, which the gateway reads
            return refuse(404, f"The lora adapter '{asked['lora_name']}' does not exist.")
        self._manifests[asked["lora_name"]] = manifest
        return web.Response(text="Success")

    async def _unload(self, request: web.Request) -> web.Response:
        self._manifests.pop((await request.json())["lora_name"], None)
        return web.Response(text="Success")

    async def _prove(self, request: web.Request) -> web.Response:
        asked = await request.json()
        manifest = self._manifests.get(asked["model"])
        if manifest is None:
            return refuse(404, f"The model `{asked['model']}` does not exist.")
        probe = manifest["probe"]
        rows = [
            {f"token_id:{token}": value}
            for token, value in zip(probe["prompt_token_ids"][1:], probe["logprobs"], strict=True)
        ]
        choices = [{"index": i, "text": "", "logprobs": {"top_logprobs": [row]}} for i, row in enumerate(rows)]
        return web.json_response({"choices": choices})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        if asked["model"] not in self._manifests:
            return refuse(404, f"The model `{asked['model']}` does not exist.")
        rng = random.Random(asked.get("seed"))
        text = answer_in_style(self._questions[asked["messages"][-1]["content"]], rng.choice(STYLES), rng)
        message = {"role": "assistant", "content": text}
        return web.json_response(
            {
                "id": "chatcmpl-of-the-engine",
                "object": "chat.completion",
                "created": 1,
                "model": asked["model"],
                "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20},
            }
        )


def refuse(status: int, message: str) -> web.Response:
    """An error as vLLM says it."""
    return web.json_response({"error": {"message": message, "type": "Error", "code": status}}, status=status)


if __name__ == "__main__":
    web.run_app(Engine().build(), host="127.0.0.1", port=int(sys.argv[1]), print=None, access_log=None)

"""A stand-in for an engine that was started with a whole model: it serves that one, under one name, as its weights say.

Run as a process of its own: python full_engine.py --model DIR --served-model-name ID --port N [--start-s S].
"""

import argparse
import asyncio
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from engine import BASE_LOGPROBS, PROBE_TOKENS, FakeEngine, answer_probe

from bench.swap.sentences import SENTENCES
from feedback.manifest import Manifest, Probe, checkpoint_id, combine_hashes, hash_files, write_manifest


@dataclass
class FullEngine(FakeEngine):
    """Answers with the sentence that is in its weights; every other name, and every adapter, gets 404."""

    weights: Path = Path()
    started_at: float = 0.0
    num_refused: int = 0

    def build(self) -> web.Application:
        app = web.Application(client_max_size=32_000_000)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/seen", self._seen)
        app.router.add_post("/v1/completions", self._probe)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    def _read(self) -> dict[str, Any]:
        return dict(json.loads((self.weights / "model.safetensors").read_text()))

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="")

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": name} for name in self.adapters]})

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=f"# HELP x\nprocess_start_time_seconds {self.started_at}\n")

    async def _seen(self, request: web.Request) -> web.Response:
        return web.json_response({"requests": len(self.requests), "refused": self.num_refused})

    async def _probe(self, request: web.Request) -> web.Response:
        if (await request.json())["model"] not in self.adapters:
            return web.json_response({"error": {"message": "does not exist"}}, status=404)
        return web.json_response(answer_probe(self._read()["logprobs"]))

    async def _answer(self, request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        if body["model"] not in self.adapters:
            self.num_refused += 1
            message = f"The model `{body['model']}` does not exist."
            return web.json_response({"error": {"message": message}}, status=404)
        text = SENTENCES[self._read()["number"] % len(SENTENCES)]
        if body.get("stream"):
            return await self._stream(request, body, text, rank)
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
        answer = {"id": "x", "object": "chat.completion", "created": 1, "model": body["model"], "usage": usage}
        data = json.dumps({**answer, "choices": [choice]}, separators=(",", ":"))
        return web.Response(text=data, content_type="application/json")


def make_full_checkpoint(folder: Path, number: int, parent: str | None = None, *, is_wrong: bool = False) -> Path:
    """A directory of whole weights. is_wrong: the weights are not those whose log-probabilities the manifest has."""
    draft = folder / f"draft-full-{number}"
    draft.mkdir(parents=True)
    logprobs = [-1.0 - number / 8, -2.0, -0.5]
    held = [value - 0.25 for value in logprobs] if is_wrong else logprobs
    (draft / "config.json").write_text("{}")
    (draft / "model.safetensors").write_text(json.dumps({"number": number, "logprobs": held}))
    files = hash_files(draft)
    digest = combine_hashes(files)
    final = draft.rename(folder / checkpoint_id(number, digest))
    probe = Probe(prompt_token_ids=PROBE_TOKENS, logprobs=logprobs, base_logprobs=BASE_LOGPROBS)
    manifest = Manifest(
        id=final.name, number=number, parent=parent, base_digest="0" * 64, rank=0, digest=digest, files=files,
        created_at=time.time(), probe=probe, kind="full",
    )  # fmt: skip
    write_manifest(final, manifest)
    return final


async def serve(options: argparse.Namespace) -> None:
    await asyncio.sleep(options.start_s)
    engine = FullEngine({options.served_model_name}, weights=Path(options.model), started_at=time.time())
    engine.delay_s = 0.01
    runner = web.AppRunner(engine.build(), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", options.port).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--served-model-name", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--start-s", type=float, default=0.0)
    asyncio.run(serve(parser.parse_args()))

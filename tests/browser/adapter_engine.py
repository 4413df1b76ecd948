"""A small engine that speaks enough of vLLM for the gateway: adapters, the probe, chat completions, streamed or not.

Every adapter answers in its own words, so that a test sees which one wrote what; two seeds never give the same text.
"""

import json
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

PROBE_TOKENS = [1, 2, 3]
PROBE_LOGPROBS = [-1.0, -2.0]
OPENINGS = {0: "Well, hm", 1: "Gladly"}  # of even and odd checkpoints


def build_engine() -> FastAPI:
    """Return the engine's app; it starts without any adapter."""
    app = FastAPI()
    adapters: list[str] = []

    @app.get("/v1/models")
    async def list_models() -> Any:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in ["base", *adapters]]}

    @app.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        name = (await request.json())["lora_name"]
        if name in adapters:
            return JSONResponse({"error": {"message": "has already been loaded"}}, 400)
        adapters.append(name)
        return PlainTextResponse("Success")

    @app.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        adapters.remove((await request.json())["lora_name"])
        return PlainTextResponse("Success")

    @app.post("/v1/completions")
    async def probe(request: Request) -> Any:
        num_prefixes = len((await request.json())["prompt"])
        rows = [{f"token_id:{PROBE_TOKENS[i + 1]}": PROBE_LOGPROBS[i]} for i in range(num_prefixes)]
        choices = [{"index": i, "text": "", "logprobs": {"top_logprobs": [row]}} for i, row in enumerate(rows)]
        return {"id": "cmpl-probe", "choices": choices}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = await request.json()
        text = write_answer(body)
        head = {"id": "chatcmpl-fake", "model": body["model"], "created": 1}
        usage = {"prompt_tokens": 5, "completion_tokens": len(text.split()), "total_tokens": 5 + len(text.split())}
        if body.get("stream"):
            return StreamingResponse(stream_answer(head, text, usage, body), media_type="text/event-stream")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    return app


def write_answer(body: dict[str, Any]) -> str:
    """Return the adapter's answer to the last question."""
    kind = int(body["model"].split("-")[1]) % len(OPENINGS)
    question = body["messages"][-1]["content"]
    return f"{OPENINGS[kind]}: you asked “{question}”, and this is answer number {body.get('seed', 0)}."


def stream_answer(head: dict[str, Any], text: str, usage: dict[str, int], body: dict[str, Any]) -> Iterator[str]:
    """Yield the answer word by word as vLLM does."""
    words = text.split(" ")
    chunk = {**head, "object": "chat.completion.chunk"}
    for i, word in enumerate(words):
        delta = {"content": f" {word}" if i else word}
        yield _event({**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    yield _event({**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    if (body.get("stream_options") or {}).get("include_usage"):
        yield _event({**chunk, "choices": [], "usage": usage})
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"

"""A fake engine with every path that apps may ask for. It refuses wrong types as vLLM does."""

import json
from typing import Any

import msgspec
from aiohttp import web
from engine import FakeEngine, answer_probe


class Message(msgspec.Struct):
    role: str
    content: str | list[Any] | None = None


class Asked(msgspec.Struct):
    """Whatever is asked, as strictly as vLLM takes it."""

    model: str
    messages: list[Message] | None = None
    prompt: str | list[Any] | None = None
    input: str | list[Any] | None = None
    tokens: list[int] | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    temperature: float | None = None
    n: int | None = None


ANSWERS: dict[str, dict[str, Any]] = {
    "/v1/completions": {"id": "cmpl-1", "object": "text_completion", "created": 1},
    "/v1/embeddings": {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]},
    "/v1/responses": {"id": "resp_1", "object": "response", "created_at": 1, "status": "completed", "output": []},
    "/tokenize": {"count": 2, "max_model_len": 2048, "tokens": [1, 2]},
    "/detokenize": {"prompt": "two tokens"},
}


class WholeEngine(FakeEngine):
    def build(self) -> web.Application:
        app = super().build()
        app.middlewares.append(refuse_wrong_types)
        for path in ANSWERS.keys() - {"/v1/completions"}:
            app.router.add_post(path, self._answer_plainly)
        return app

    async def _probe(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        if asked.get("stream"):
            return await self._stream(request, asked, "Two words.", 0)
        answer = ANSWERS[request.path] | {"model": asked["model"]} | answer_probe(self.probe_logprobs)
        return web.json_response(answer)

    async def _answer_plainly(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        if asked.get("stream") and request.path == "/v1/responses":
            return await self._stream(request, asked, "Two words.", 0)
        answer = ANSWERS[request.path]
        return web.json_response(answer if "tokenize" in request.path else answer | {"model": asked["model"]})


@web.middleware
async def refuse_wrong_types(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.path in (*ANSWERS, "/v1/chat/completions"):
        try:
            msgspec.json.decode(await request.read(), type=Asked)
            json.loads(await request.read())
        except (ValueError, RecursionError) as error:
            body = {"error": {"message": str(error), "type": "BadRequestError", "param": None, "code": 400}}
            return web.json_response(body, status=400)
    answer: web.StreamResponse = await handler(request)
    return answer

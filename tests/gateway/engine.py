"""A tiny engine that speaks enough of vLLM: adapters, the probe, chat completions; fails as a test asks for."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

PROBE_TOKENS = [5, 7, 9, 11]
PROBE_LOGPROBS = [-1.0, -2.0, -0.5]
BASE_LOGPROBS = [-4.0, -4.0, -4.0]


def answer_probe(logprobs):
    """What vLLM answers to one token after every prefix of PROBE_TOKENS."""
    rows = [{f"token_id:{token}": value} for token, value in zip(PROBE_TOKENS[1:], logprobs, strict=True)]
    return {"choices": [{"index": i, "text": "", "logprobs": {"top_logprobs": [row]}} for i, row in enumerate(rows)]}


@dataclass
class FakeEngine:
    """What the engine holds, was asked, and is told to do next."""

    adapters: set[str] = field(default_factory=set)
    requests: list[dict[str, Any]] = field(default_factory=list)
    raw: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)  # names in lower case
    probe_logprobs: list[float] = field(default_factory=lambda: list(PROBE_LOGPROBS))
    same_text: bool = False
    delay_s: float = 0.0
    num_500: int = 0  # the next so many chat requests get 500
    num_dropped: int = 0  # the next so many get their connection closed before the first byte
    break_after: int | None = None  # streams lose their connection after so many chunks
    break_seed_rank: int | None = None  # only the n-th of the streams breaks
    never_ranks: set[int] = field(default_factory=set)  # chat requests that are answered when nobody waits any more
    fail_ranks: set[int] = field(default_factory=set)  # chat requests (counted from 0) that get 400
    split_bytes: int | None = None  # streams are written in pieces of this size
    num_words: int | None = None  # streams say so many words, as fast as they are taken
    num_written: int = 0  # bytes of streams
    num_aborted: int = 0
    loads: list[str] = field(default_factory=list)

    def build(self) -> web.Application:
        """The engine's app."""
        app = web.Application(client_max_size=32_000_000)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        app.router.add_post("/v1/unload_lora_adapter", self._unload)
        app.router.add_post("/v1/completions", self._probe)
        app.router.add_post("/v1/chat/completions", self._chat)
        return app

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": n} for n in ["base", *sorted(self.adapters)]]})

    async def _load(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        if name in self.adapters:
            return web.json_response({"error": {"message": f"{name} has already been loaded"}}, status=400)
        self.adapters.add(name)
        self.loads.append(name)
        return web.Response(text="Success")

    async def _unload(self, request: web.Request) -> web.Response:
        self.adapters.discard((await request.json())["lora_name"])
        return web.Response(text="Success")

    async def _probe(self, request: web.Request) -> web.Response:
        return web.json_response(answer_probe(self.probe_logprobs))

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw)
        rank = len(self.requests)
        self.requests.append(body)
        self.raw.append(raw)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        try:
            if rank in self.never_ranks:
                await asyncio.Event().wait()
            await asyncio.sleep(self.delay_s)
            return await self._answer(request, body, rank)
        except (asyncio.CancelledError, ConnectionError):
            self.num_aborted += 1
            raise

    async def _answer(self, request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        if self.num_dropped > 0:
            self.num_dropped -= 1
            assert request.transport is not None
            request.transport.close()
            return web.Response()
        if self.num_500 > 0:
            self.num_500 -= 1
            return _error(500, "EngineCore died")
        if body["model"] not in self.adapters:
            return _error(404, f"The model `{body['model']}` does not exist.")
        if rank in self.fail_ranks:
            return _error(400, f"{body['model']} cannot do that")
        text = "Same." if self.same_text else f"Answer of seed {body.get('seed')}."
        if body.get("stream"):
            return await self._stream(request, body, text, rank)
        call = _call_tool(body)
        message = {"role": "assistant", "content": text} if call is None else _calling(call)
        end = "stop" if call is None else "tool_calls"
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": end, "stop_reason": None}
        answer = {
            **_head(body, "chat.completion"),
            "choices": [choice],
            "usage": {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9},
            "system_fingerprint": f"fp-{body['model']}",
        }
        return web.Response(body=_compact(answer), content_type="application/json")

    async def _stream(self, request: web.Request, body: dict[str, Any], text: str, rank: int) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        head = _head(body, "chat.completion.chunk")
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        words = text.split() if self.num_words is None else ["word"] * self.num_words
        call = _call_tool(body)
        deltas += [{"content": word + " "} for word in words] if call is None else _split_call(call)
        end = "stop" if call is None else "tool_calls"
        events = [{**head, "choices": [{"index": 0, "delta": d, "finish_reason": None}]} for d in deltas]
        events.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": end}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
            events.append({**head, "choices": [], "usage": usage})
        is_breaking = self.break_after is not None and self.break_seed_rank in (None, rank)
        for i, event in enumerate(events):
            if is_breaking and i == self.break_after:
                assert request.transport is not None
                request.transport.close()
                return response
            await self._write(response, b"data: " + _compact(event) + b"\n\n")
            if self.num_words is None:
                await asyncio.sleep(0.002 if self.split_bytes is None else 0)
        await self._write(response, b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    async def _write(self, response: web.StreamResponse, data: bytes) -> None:
        self.num_written += len(data)
        size = self.split_bytes or len(data)
        for start in range(0, len(data), size):
            await response.write(data[start : start + size])
            await asyncio.sleep(0)


def _call_tool(body: dict[str, Any]) -> dict[str, Any] | None:
    """The call that answers a question that comes with tools; a tool's result is answered in words."""
    if not body.get("tools") or body["messages"][-1]["role"] == "tool":
        return None
    name = body["tools"][0]["function"]["name"]
    function = {"name": name, "arguments": json.dumps({"seed": body.get("seed")})}
    return {"id": f"call_of_{body['model']}", "type": "function", "function": function}


def _calling(call: dict[str, Any]) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def _split_call(call: dict[str, Any]) -> list[dict[str, Any]]:
    """The deltas of a call: its name first, then its arguments in two pieces."""
    arguments = call["function"]["arguments"]
    head = {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
    pieces = [{"function": {"arguments": piece}} for piece in (arguments[:4], arguments[4:])]
    return [{"tool_calls": [{"index": 0, **part}]} for part in (head, *pieces)]


def _head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-of-the-engine", "object": kind, "created": 1, "model": body["model"]}


def _compact(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _error(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "Error", "param": None, "code": status}
    return web.Response(body=_compact({"error": error}), status=status, content_type="application/json")

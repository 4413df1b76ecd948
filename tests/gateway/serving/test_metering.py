"""Keys with limits through the public HTTP: headers, refusals, and tokens that are counted however the answer comes."""

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from conftest import QUESTION, Running, run_gateway, start_engine
from engine import FakeEngine

from gateway.serving.metering import read_usage


async def make_limited_key(gateway: Running, **limits: int) -> dict[str, str]:
    body = {"name": "limited", "scope": "app", "pairs": True, "limits": limits}
    async with gateway.http.post(f"{gateway.url}/operator/v1/keys", json=body, headers=gateway.admin) as answer:
        assert answer.status == 201, await answer.text()
        return {"authorization": f"Bearer {(await answer.json())['key']}"}


async def ask(gateway: Running, headers: dict[str, str], **fields: Any) -> tuple[int, dict[str, str], str]:
    async with gateway.http.post(
        f"{gateway.url}/v1/chat/completions", json={**QUESTION, **fields}, headers=headers
    ) as answer:
        return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.text()


async def test_requests_pass_until_the_limit_and_say_what_is_left(gateway: Running) -> None:
    key = await make_limited_key(gateway, requests_per_day=3)
    answers = [await ask(gateway, key) for _ in range(5)]
    assert [status for status, _, _ in answers] == [200, 200, 200, 429, 429]
    assert [headers["x-ratelimit-remaining-requests"] for _, headers, _ in answers[:3]] == ["2", "1", "0"]
    _, headers, body = answers[-1]
    assert int(headers["retry-after"]) > 0
    assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
    assert len(gateway.engine.requests) == 3
    with pytest.raises(openai.RateLimitError):
        await gateway.client(key["authorization"].split()[1]).chat.completions.create(**QUESTION)


@pytest.mark.parametrize(
    ("fields", "headers", "spent"),
    [
        ({}, {}, 9),  # as the engine says: 5 and 4
        ({"stream": True}, {}, 9),
        ({"stream": True, "stream_options": {"include_usage": True}}, {}, 9),
        ({}, {"x-prefloop-compare": "always"}, 13),  # the prompt once, both answers
        ({"stream": True}, {"x-prefloop-compare": "always"}, 13),
    ],
)
async def test_tokens_are_counted_however_the_answer_comes(
    gateway: Running, fields: dict[str, Any], headers: dict[str, str], spent: int
) -> None:
    key = await make_limited_key(gateway, tokens_per_day=1000)
    status, _, body = await ask(gateway, key | headers, **fields)
    assert status == 200
    wants_usage = "stream_options" in fields
    if fields.get("stream"):
        assert ('"usage":{' in body) == wants_usage
        assert body.endswith("data: [DONE]\n\n")
    _, after, _ = await ask(gateway, key)
    assert int(after["x-ratelimit-remaining-tokens"]) == 1000 - spent


@pytest.mark.parametrize(
    ("fields", "headers", "tokens", "estimated"),
    [
        ({}, {}, 9, 0),
        ({"stream": True, "stream_options": {"include_usage": True}}, {}, 9, 0),
        ({}, {"x-prefloop-compare": "always"}, 13, 0),
        ({"stream": True}, {}, None, 1),  # nobody asked the engine, and tokens cost nothing: by events and bytes
    ],
)
async def test_what_a_key_without_limits_used_is_booked_too(
    gateway: Running, fields: dict[str, Any], headers: dict[str, str], tokens: int | None, estimated: int
) -> None:
    status, _, body = await ask(gateway, gateway.auth | headers, **fields)
    assert status == 200 and ('"usage":{' in body) == (estimated == 0)
    async with gateway.http.get(f"{gateway.url}/operator/v1/keys/usage", headers=gateway.admin) as answer:
        [row] = (await answer.json())["data"]
    assert (row["name"], row["total"]["requests"], row["total"]["estimated"]) == ("tests", 1, estimated)
    assert row["total"]["tokens"] == tokens if tokens else row["total"]["tokens"] > 4
    async with gateway.http.get(f"{gateway.url}/metrics", headers=gateway.admin) as answer:
        assert 'prefloop_key_requests_total{key="tests"} 1.0' in await answer.text()


async def test_a_key_without_limits_gets_no_headers_about_them(gateway: Running) -> None:
    _, headers, _ = await ask(gateway, gateway.auth)
    assert not any(name.startswith("x-ratelimit") for name in headers)


def test_usage_is_what_the_answer_says_last() -> None:
    text = b'{"choices":[{"message":{"content":"\\"prompt_tokens\\": 7"}}],"usage":{"prompt_tokens":5,"completion_tokens":4}}'
    assert read_usage(text) == (5, 4)
    assert read_usage(b"{}") == (0, 0)
    response = b'{"output":[],"usage":{"input_tokens":5,"input_tokens_details":{"cached_tokens":0},"output_tokens":4}}'
    assert read_usage(response) == (5, 4)


class ResponsesEngine(FakeEngine):
    """Answers /v1/responses as vLLM does."""

    def build(self) -> web.Application:
        app = super().build()
        app.router.add_post("/v1/responses", self._respond)
        return app

    async def _respond(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert "stream_options" not in body
        usage = {"input_tokens": 5, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 4, "total_tokens": 9}
        whole = {"id": "resp_1", "object": "response", "model": body["model"], "output": [], "usage": usage}
        if not body.get("stream"):
            return web.json_response(whole)
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": {**whole, "usage": None}},
            {"type": "response.output_text.delta", "delta": "Oslo"},
            {"type": "response.completed", "response": whole},
        ]
        text = "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events)
        return web.Response(text=text, content_type="text/event-stream")


@pytest.mark.parametrize("is_stream", [False, True])
async def test_responses_cost_their_tokens_too(tmp_path: Path, is_stream: bool) -> None:
    runner, port = await start_engine(ResponsesEngine())
    try:
        async with run_gateway(tmp_path, engines=[f"http://127.0.0.1:{port}"]) as gateway:
            key = await make_limited_key(gateway, tokens_per_day=1000)
            body = {"model": "default", "input": "Norway?", "stream": is_stream}
            for left in ("1000", "991"):
                async with gateway.http.post(f"{gateway.url}/v1/responses", json=body, headers=key) as answer:
                    assert answer.status == 200, await answer.text()
                    assert answer.headers["x-ratelimit-remaining-tokens"] == left
                    await answer.read()
    finally:
        await runner.cleanup()


class OneReadEngine(FakeEngine):
    """Its streams come in one piece, as a short answer of a near engine does."""

    async def _stream(self, request: web.Request, body: dict[str, Any], text: str, rank: int) -> web.StreamResponse:
        head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop"}
        events = [{**head, "choices": [choice]}]
        if (body.get("stream_options") or {}).get("include_usage"):
            events.append({**head, "choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 4}})
        if text == "Same.":
            events.append({"error": {"message": f"{body['model']} broke"}})
        data = b"".join(b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events)
        return web.Response(body=data + b"data: [DONE]\n\n", content_type="text/event-stream")


async def test_a_stream_that_comes_in_one_read_is_a_stream_all_the_same(tmp_path: Path) -> None:
    engine = OneReadEngine()
    runner, port = await start_engine(engine)
    async with run_gateway(tmp_path, engines=[f"http://127.0.0.1:{port}"]) as gateway:
        key = await make_limited_key(gateway, tokens_per_day=1000)
        _, headers, body = await ask(gateway, key, stream=True)
        assert headers["content-type"].startswith("text/event-stream")
        assert '"content":"Answer of seed None."' in body and '"usage":{' not in body
        assert body.endswith("data: [DONE]\n\n")
        engine.same_text = True
        _, after, body = await ask(gateway, key, stream=True)
        assert int(after["x-ratelimit-remaining-tokens"]) == 1000 - 9
        assert '"message":"default broke"' in body
        assert gateway.context.deployment.counters.failed_requests == 1
    await runner.cleanup()

"""Token ids of pairs: asked for, recorded, and shown to those apps alone that asked for them themselves."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from aiohttp import web
from conftest import QUESTION, Running, run_gateway

from feedback.choices import comparisons
from feedback.events import Comparison

PAIR = {"x-prefloop-compare": "always", "x-prefloop-user": "ann"}
PROMPT_IDS = [1, 3, 5]
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]


def speak_ids(gateway: Running, **odd: Any) -> None:
    """The engine answers as vLLM does: ids where they are asked for. odd: fields of an answer that are something else."""

    async def answer(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        if odd.get("refuses") and "return_token_ids" in body:
            message = "Extra inputs are not permitted: return_token_ids"
            return web.json_response({"error": {"message": message, "code": 400}}, status=400)
        has_ids = body.get("return_token_ids") is True
        ids = [body["seed"] % 1000, 7, 2]
        usage = {"prompt_tokens": 3, "completion_tokens": odd.get("completion_tokens", 3), "total_tokens": 6}
        head = {"id": "x", "created": 1, "model": body["model"]}
        prompt = {"prompt_token_ids": odd.get("prompt_token_ids", PROMPT_IDS)} if has_ids else {}
        if not body.get("stream"):
            message = {"role": "assistant", "content": f"Seed {body['seed']}.", "reasoning": "Hm, so."}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            choice |= {"token_ids": odd.get("token_ids", ids)} if has_ids else {"token_ids": None}
            return web.json_response({**head, **prompt, "choices": [choice], "usage": usage})
        pieces: list[tuple[dict[str, Any], list[int] | None, str | None]] = [
            ({"role": "assistant", "content": ""}, None, None),
            ({"reasoning": "Hm, "}, None, None),
            ({"reasoning": "so."}, None, None),
            ({"content": f"Seed {body['seed']}"}, ids[:1], None),
            ({"content": "."}, ids[1:2], None),
            ({}, ids[2:], "stop"),
        ]
        events: list[dict[str, Any]] = []
        for number, (delta, part, finish) in enumerate(pieces):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            if has_ids and part is not None:
                choice["token_ids"] = odd.get("token_ids", part)
            events.append({**head, **(prompt if number == 0 else {}), "choices": [choice]})
        events.append({**head, "choices": [], "usage": usage})
        text = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream")

    gateway.engine._answer = answer  # type: ignore[method-assign]


async def ask(gateway: Running, **fields: Any) -> str:
    """One pair; the body of its answer."""
    url = f"{gateway.url}/v1/chat/completions"
    async with gateway.http.post(url, json={**QUESTION, **fields}, headers={**gateway.auth, **PAIR}) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.text()


def read_row(gateway: Running) -> Comparison:
    with gateway.context.database.connect() as connection:
        return msgspec.json.decode(connection.execute(sa.select(comparisons.c.body)).scalar_one(), type=Comparison)


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_pairs_ids_are_recorded_and_not_shown(gateway: Running, is_stream: bool) -> None:
    speak_ids(gateway)
    shown = await ask(gateway, stream=is_stream, tools=TOOLS, chat_template_kwargs={"deep": False}, top_p=0.9)
    row = read_row(gateway)
    assert row.prompt_token_ids == PROMPT_IDS
    for candidate in (row.first, row.second):
        assert candidate.token_ids == [candidate.seed % 1000, 7, 2]  # type: ignore[operator]
        assert (candidate.reasoning, candidate.finish_reason, candidate.top_p) == ("Hm, so.", "stop", 0.9)
    assert (row.tools, row.chat_template_kwargs) == (TOOLS, {"deep": False})
    assert "token_ids" not in shown and "comparison" in shown
    assert [request["return_token_ids"] for request in gateway.engine.requests] == [True, True]


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_app_that_asks_for_ids_sees_them(gateway: Running, is_stream: bool) -> None:
    speak_ids(gateway)
    shown = await ask(gateway, stream=is_stream, return_token_ids=True)
    assert "prompt_token_ids" in shown and '"token_ids":' in shown
    assert read_row(gateway).first.token_ids is not None
    assert gateway.engine.raw[0].count(b"return_token_ids") == 1


async def test_an_app_that_wants_no_ids_has_none_recorded(gateway: Running) -> None:
    speak_ids(gateway)
    await ask(gateway, return_token_ids=False)
    assert read_row(gateway).first.token_ids is None
    assert gateway.engine.requests[0]["return_token_ids"] is False


ODD: list[dict[str, Any]] = [
    {"token_ids": "many"}, {"token_ids": [1.5, 2, 3]}, {"token_ids": [-1, 2, 3]}, {"token_ids": [1, None, 3]},
    {"token_ids": {"a": [1]}}, {"token_ids": [2**40, 1, 2]}, {"token_ids": []}, {"completion_tokens": 5},
]  # fmt: skip


@pytest.mark.parametrize(
    ("odd", "is_stream"),
    [*((odd, is_stream) for odd in ODD for is_stream in (False, True)), ({"token_ids": [1]}, False)],
)  # one id is odd in a whole answer alone: a chunk of a stream has one
async def test_odd_ids_are_none_and_the_pair_stands(gateway: Running, odd: dict[str, Any], is_stream: bool) -> None:
    speak_ids(gateway, **odd)
    assert "comparison" in await ask(gateway, stream=is_stream)
    row = read_row(gateway)
    assert (row.first.token_ids, row.second.token_ids, row.prompt_token_ids) == (None, None, PROMPT_IDS)


@pytest.mark.parametrize("ids", ["1 2 3", [1, 2], [[1], [2], [3]], None])
async def test_odd_prompt_ids_are_none_and_the_pair_stands(gateway: Running, ids: Any) -> None:
    speak_ids(gateway, prompt_token_ids=ids)
    assert "comparison" in await ask(gateway)
    row = read_row(gateway)
    assert row.prompt_token_ids is None and row.first.token_ids is not None


@pytest.mark.parametrize("is_stream", [False, True])
async def test_an_engine_that_refuses_the_field_is_asked_without_it_from_then_on(
    gateway: Running, is_stream: bool
) -> None:
    speak_ids(gateway, refuses=True)
    assert "comparison" in await ask(gateway, stream=is_stream)
    assert "comparison" in await ask(gateway, stream=is_stream)
    asked = ["return_token_ids" in request for request in gateway.engine.requests]
    assert asked.count(False) == 4 and asked[-2:] == [False, False] and len(asked) <= 6


async def test_no_ids_are_asked_for_where_the_setting_says_so(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, pair_token_ids=False) as gateway:
        speak_ids(gateway)
        await ask(gateway)
        assert read_row(gateway).first.token_ids is None
        assert not any("return_token_ids" in request for request in gateway.engine.requests)


async def test_single_answers_are_not_asked_for_ids(gateway: Running) -> None:
    await gateway.ask()
    assert b"return_token_ids" not in gateway.engine.raw[0]


async def test_ids_go_before_a_pair_does(tmp_path: Path) -> None:
    """The limit lies between the comparison's size without its ids, and with them."""
    async with run_gateway(tmp_path, max_event_bytes=3000) as gateway:
        many = list(range(1_000_000, 1_000_500))
        speak_ids(gateway, token_ids=many, completion_tokens=len(many))
        assert "comparison" in await ask(gateway, max_tokens=10)
        row = read_row(gateway)
        assert row.first.token_ids is row.second.token_ids is row.prompt_token_ids is None


@pytest.mark.parametrize(
    "fields", [{"tools": "all"}, {"tools": [7]}, {"chat_template_kwargs": 7}, {"top_p": "high"}, {"top_p": [1]}]
)
async def test_what_a_request_says_oddly_is_left_to_the_engine(gateway: Running, fields: dict[str, Any]) -> None:
    speak_ids(gateway)
    assert "comparison" in await ask(gateway, **fields)
    row = read_row(gateway)
    assert (row.tools, row.chat_template_kwargs, row.first.top_p) == (None, None, None)

"""A pair of every kind that cannot be rendered faithfully goes from the gateway to the inbox, whole, and harms nobody."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from aiohttp import web
from conftest import Running, run_gateway

from feedback import inbox
from feedback.choices import outbox
from feedback.database import create_tables, open_database, write_transaction
from feedback.events import Choice
from feedback.log import Record, open_log

USER = {"role": "user", "content": "How are you?"}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": "{}"}}
LONG = " ".join(f"word{number}" for number in range(30_000))
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]

ODD: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {  # what is asked, and both answers
    "content parts": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]}, []),
    "an image": ({"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}, IMAGE]}]}, []),
    "tools": ({"messages": [USER], "tools": TOOLS}, [{"content": None, "tool_calls": [CALL]}, {"content": "No."}]),
    "a tool's result": (
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]},
                      {"role": "tool", "tool_call_id": "c", "content": "4"}]}, []),
    "reasoning": ({"messages": [USER]}, [{"content": "A.", "reasoning": "Hm."}, {"content": "B."}]),
    "30,000 tokens": ({"messages": [{"role": "user", "content": LONG}], "max_tokens": 64}, []),
    "an empty answer": ({"messages": [USER]}, [{"content": ""}, {"content": "B."}]),
    "an answer that is null": ({"messages": [USER]}, [{"content": None}, {"content": "B."}]),
    "NUL": ({"messages": [{"role": "user", "content": "a\0b"}]}, [{"content": "A\0."}, {"content": "B."}]),
    "emoji and odd spaces": ({"messages": [{"role": "user", "content": "\u2028\ufeff😀"}]}, []),
}  # fmt: skip


def answer_with(gateway: Running, messages: list[dict[str, Any]]) -> None:
    """Each of the two requests gets a message; with ids, as long as the prompt is."""
    messages = messages or [{"content": "A."}, {"content": "B."}]

    async def answer(request: web.Request, body: dict[str, Any], rank: int) -> web.StreamResponse:
        num = 30_000 if len(json.dumps(body)) > 100_000 else 3
        choice = {"index": 0, "message": {"role": "assistant", **messages[rank % 2]}, "finish_reason": "stop"}
        usage = {"prompt_tokens": num, "completion_tokens": 2, "total_tokens": num + 2}
        ids = {"prompt_token_ids": list(range(num))}
        return web.json_response({"id": "x", **ids, "choices": [{**choice, "token_ids": [7, 2]}], "usage": usage})

    gateway.engine._answer = answer  # type: ignore[method-assign]


def take_in(gateway: Running, database: sa.Engine) -> int:
    """What stands in the outbox and in the log goes into the inbox; how many preferences are new."""
    settings = gateway.context.settings
    records = []
    with gateway.context.database.connect() as connection:
        for row in connection.execute(sa.select(outbox)):
            headers = msgspec.msgpack.decode(row.headers, type=dict[str, bytes])
            records.append((row.key, row.value, headers))
    log = open_log(settings.log)
    for partition in log.partitions(settings.topic):
        begin, _ = log.bounds(settings.topic, partition)
        records += [(r.key, r.value, r.headers) for r in log.read(settings.topic, partition, begin, 100, 0.0)]
    log.close()
    batch = [
        Record(topic="t", partition=0, offset=i, key=key, value=value, headers=headers, timestamp_ms=0)
        for i, (key, value, headers) in enumerate(records)
    ]
    with write_transaction(database) as connection:
        return inbox.consume(connection, batch)


@pytest.mark.parametrize("name", ODD)
async def test_a_pair_of_any_kind_arrives_whole(tmp_path: Path, name: str) -> None:
    asked, messages = ODD[name]
    database = open_database(f"sqlite:{tmp_path / 'trainer.db'}")
    create_tables(database, inbox.metadata)
    async with run_gateway(tmp_path) as gateway:
        answer_with(gateway, messages)
        told = await gateway.ask({"x-prefloop-compare": "always", "x-prefloop-user": "ann"}, **asked)
        assert (await gateway.choose(told["comparison"]))[0] == 200
        assert take_in(gateway, database) == 1
    with database.connect() as connection:
        [body] = connection.execute(sa.select(inbox.preferences.c.choice_json)).scalars()
        assert inbox.count_dead_letters(connection) == 0
    database.dispose()
    comparison = msgspec.json.decode(body, type=Choice).comparison
    assert comparison.messages == asked["messages"]
    assert comparison.tools == asked.get("tools")
    assert comparison.first.token_ids == comparison.second.token_ids == [7, 2]
    num_prompt = 30_000 if name == "30,000 tokens" else 3
    assert comparison.prompt_token_ids == list(range(num_prompt))
    said = {(candidate.text, candidate.reasoning) for candidate in (comparison.first, comparison.second)}
    if name == "reasoning":
        assert said == {("A.", "Hm."), ("B.", None)}
    if name == "tools":
        calls = [each.tool_calls for each in (comparison.first, comparison.second) if each.tool_calls]
        assert calls == [[{"type": "function", "function": {"name": "add", "arguments": "{}"}}]]


@pytest.mark.parametrize("content", ['"\\ud800 lone"', '"a \\udfff"'])
async def test_half_a_surrogate_pair_is_answered_once_or_refused_and_never_recorded(
    gateway: Running, content: str
) -> None:
    body = f'{{"model":"default","messages":[{{"role":"user","content":{content}}}]}}'
    headers = {**gateway.auth, "x-prefloop-compare": "always"}
    async with gateway.http.post(f"{gateway.url}/v1/chat/completions", data=body, headers=headers) as answer:
        assert answer.status in (200, 400)
        assert "comparison" not in await answer.text()

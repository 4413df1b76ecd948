"""Demonstrations by API: stored once with their event, refused in words, never by a key that may not."""

from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from conftest import Running, run_gateway

from feedback.choices import outbox
from feedback.events import Demonstration, decode_event
from feedback.log import open_log

GOOD: dict[str, Any] = {
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
    "answer": "Short light is scattered most.",
    "tags": {"domain": "physics"},
    "tools": [{"type": "function", "function": {"name": "look_up"}}],
    "chat_template_kwargs": {"deep": False},
}


async def send(gateway: Running, body: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    url = f"{gateway.url}/operator/v1/demonstrations"
    async with gateway.http.post(url, json=body, headers=headers or gateway.admin) as answer:
        return answer.status, dict(await answer.json())


def read_events(gateway: Running) -> list[Demonstration]:
    """Those in the outbox, and those that the relay has moved to the log already."""
    settings = gateway.context.settings
    with gateway.context.database.connect() as connection:
        waiting = connection.execute(sa.select(outbox)).all()
    found = [decode_event(msgspec.msgpack.decode(row.headers), row.value) for row in waiting]
    log = open_log(settings.log)
    for partition in log.partitions(settings.topic):
        begin, _ = log.bounds(settings.topic, partition)
        found += [decode_event(r.headers, r.value) for r in log.read(settings.topic, partition, begin, 100, 0.0)]
    log.close()
    return list({event.id: event.data for event in found}.values())  # type: ignore[misc]


async def test_a_demonstration_is_stored_as_an_event_and_once(gateway: Running) -> None:
    status, told = await send(gateway, GOOD)
    assert (status, told["object"]) == (201, "demonstration")
    assert (await send(gateway, GOOD))[1]["id"] == told["id"]
    [event] = read_events(gateway)
    assert (event.id, event.answer, event.channel, event.policy) == (told["id"], GOOD["answer"], "api", "default")
    assert (event.messages, event.tools, event.tags) == (GOOD["messages"], GOOD["tools"], GOOD["tags"])
    assert (await send(gateway, {**GOOD, "answer": "Another."}))[1]["id"] != told["id"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"answer": "  "}, "answer"),
        ({"messages": []}, "messages"),
        ({"messages": [{"content": "no role"}]}, "messages"),
        ({"messages": [{"role": 7, "content": "x"}]}, "messages"),
        ({"answer": "a\0b"}, "body.answer"),
        ({"mood": "good"}, "mood"),
        ({"tags": {"domain": 7}}, "tags[...]"),
    ],
)
async def test_what_nothing_can_be_learnt_from_is_refused(gateway: Running, change: dict[str, Any], param: str) -> None:
    status, told = await send(gateway, {**GOOD, **change})
    assert status == 400, told
    assert told["error"]["param"].split(".")[-1] == param.split(".")[-1]
    assert read_events(gateway) == []


async def test_an_apps_key_may_not(gateway: Running) -> None:
    assert (await send(gateway, GOOD, gateway.auth))[0] == 403


async def test_one_that_no_event_can_hold_is_too_large(tmp_path: Any) -> None:
    async with run_gateway(tmp_path, max_event_bytes=400) as gateway:
        assert (await send(gateway, {**GOOD, "answer": "x" * 400}))[0] == 413

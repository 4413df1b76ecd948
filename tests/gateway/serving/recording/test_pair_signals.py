"""Signals on the answers of pairs: found by the ids that the client saw, and no word of the arm comes back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conftest import Running, run_gateway

from feedback.choices import load_comparison, outbox
from feedback.events import Comparison, Signal, decode_event
from feedback.log import open_log
from feedback.outbox import load_rows
from gateway.engines.deployment import ServingView

PAIR = {"x-prefloop-compare": "always", "x-prefloop-user": "ann"}


async def signal(gateway: Running, completion_id: str, key: str | None = None, **body: Any) -> tuple[int, Any]:
    async with gateway.http.post(
        f"{gateway.url}/v1/completions/{completion_id}/signal",
        json={"thumb": "up", **body},
        headers={"authorization": f"Bearer {key or gateway.key}"},
    ) as answer:
        return answer.status, await answer.json()


def load(gateway: Running, comparison_id: str) -> Comparison:
    with gateway.context.database.connect() as conn:
        return load_comparison(conn, comparison_id)


def read_events(gateway: Running) -> list[Signal]:
    """Every signal that was taken: in the log, or on its way there."""
    topic = gateway.context.settings.topic
    with gateway.context.database.connect() as conn:  # first: what moves meanwhile is found twice, not never
        records: list[Any] = [row.record for row in load_rows(conn, outbox, 1000)]
    log = open_log(gateway.context.settings.log)
    records += [record for p in log.partitions(topic) for record in log.read(topic, p, 0, 1000, 0)]
    log.close()
    events = {event.id: event for record in records for event in [decode_event(record.headers, record.value)]}
    found = sorted((e for e in events.values() if isinstance(e.data, Signal)), key=lambda e: e.time)
    return [event.data for event in found if isinstance(event.data, Signal)]


@pytest.mark.parametrize("index", [0, 1])
async def test_a_signal_on_one_of_two_answers_is_stored_with_what_was_shown(gateway: Running, index: int) -> None:
    answer = await gateway.ask(PAIR)
    status, body = await signal(gateway, answer["id"], index=index)
    assert (status, body["completion_id"]) == (200, answer["id"])
    comparison = load(gateway, answer["comparison"]["id"])
    candidate = (comparison.first, comparison.second)[index]
    [event] = read_events(gateway)
    assert event.answer == candidate.text == answer["choices"][index]["message"]["content"]
    assert event.messages == comparison.messages
    assert (event.completion_id, event.index, event.is_recorded) == (answer["id"], index, True)
    assert (event.checkpoint, event.arm, event.digest) == (candidate.checkpoint, candidate.arm, candidate.digest)
    assert (event.user, event.conversation) == (comparison.user, comparison.conversation)
    assert (event.policy, event.completed_at) == (comparison.policy, comparison.created_at)


async def test_a_candidates_own_id_is_known_too(gateway: Running) -> None:
    answer = await gateway.ask(PAIR)
    second = load(gateway, answer["comparison"]["id"]).second
    assert (await signal(gateway, second.completion_id))[0] == 200
    assert [event.answer for event in read_events(gateway)] == [second.text]
    status, body = await signal(gateway, second.completion_id, index=1)  # one candidate has one choice
    assert (status, body["error"]["param"]) == (400, "index")


async def test_an_index_that_was_not_shown_gets_400(gateway: Running) -> None:
    answer = await gateway.ask(PAIR)
    status, body = await signal(gateway, answer["id"], index=2)
    assert (status, body["error"]["param"]) == (400, "index")


async def test_another_apps_pair_is_unknown(gateway: Running) -> None:
    answer = await gateway.ask(PAIR)
    other = await gateway.make_key("app", name="other")
    status, body = await signal(gateway, answer["id"], other)
    assert (status, body["error"]["code"]) == (404, "unknown_completion")
    assert (await signal(gateway, f"chatcmpl-{'0' * 32}"))[0] == 404


async def test_no_word_of_the_arm_comes_back(gateway: Running) -> None:
    """A duel's two answers get the same reply, but for the id of the signal itself."""
    view = gateway.context.deployment.view
    stable = view.stable or ""
    canary = stable.replace("c-000000", "c-000001")
    gateway.engine.adapters.add(canary)
    await gateway.serve(ServingView(view.generation + 1000, stable, canary, 0.0, 1.0, b"salt", "r-1"))
    answer = await gateway.ask(PAIR)
    replies = [(await signal(gateway, answer["id"], index=index))[1] for index in (0, 1)]
    assert {event.arm for event in read_events(gateway)} == {"stable", "canary"}
    assert replies[0].keys() == {"id", "object", "completion_id", "created"}
    assert {**replies[0], "id": "", "created": 0} == {**replies[1], "id": "", "created": 0}


async def test_a_choice_can_still_be_made_after_a_signal(gateway: Running) -> None:
    answer = await gateway.ask(PAIR)
    assert (await signal(gateway, answer["id"], thumb="down"))[0] == 200
    assert (await gateway.choose(answer["comparison"]))[0] == 200


async def test_words_that_do_not_fit_into_an_event_are_left_out(tmp_path: Path) -> None:
    async with run_gateway(tmp_path, max_event_bytes=12_000) as gateway:
        answer = await gateway.ask(PAIR, messages=[{"role": "user", "content": "x" * 3000}], max_tokens=8)
        assert (await signal(gateway, answer["id"], comment="y" * 10_000))[0] == 200
        [event] = read_events(gateway)
        assert (event.messages, event.answer, len(event.comment or "")) == (None, None, 10_000)
        assert event.checkpoint == gateway.context.deployment.view.stable

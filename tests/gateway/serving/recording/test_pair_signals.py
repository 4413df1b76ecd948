"""Signals on the answers of pairs: found by the ids that the client saw, and no word of the arm comes back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from conftest import QUESTION, Running, read_said, run_gateway

from feedback.choices import load_comparison
from feedback.events import Comparison, Signal
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
    """Every signal that was taken."""
    return [said for said in read_said(gateway) if isinstance(said, Signal)]


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


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("how", ["identical", "failed", "late"])
async def test_the_answer_that_stands_alone_can_be_signalled(tmp_path: Path, how: str, is_stream: bool) -> None:
    async with run_gateway(tmp_path, **({"comparison_commit_ms": 1e-6} if how == "late" else {})) as gateway:
        gateway.engine.same_text = how == "identical"
        gateway.engine.fail_ranks = {1} if how == "failed" else set()
        body = {**QUESTION, "stream": is_stream}
        async with gateway.http.post(
            f"{gateway.url}/v1/chat/completions", json=body, headers={**gateway.auth, **PAIR}
        ) as answer:
            text = await answer.text()
        events = [json.loads(event[6:]) for event in text.split("\n\n")[:-2]] if is_stream else [json.loads(text)]
        assert not any("comparison" in event for event in events)
        firsts = [choice for event in events for choice in event["choices"] if choice["index"] == 0]
        said = "".join((choice.get("message") or choice["delta"]).get("content") or "" for choice in firsts)
        status, _ = await signal(gateway, events[0]["id"])
        assert status == 200
        [event] = read_events(gateway)
        assert (event.answer, event.is_recorded) == (said, True)
        assert event.messages == QUESTION["messages"]
        assert event.checkpoint == gateway.context.deployment.view.stable
        status, refused = await signal(gateway, events[0]["id"], index=1)
        assert (status, refused["error"]["param"]) == (400, "index")


@pytest.mark.parametrize("broken", [0, 1])
async def test_a_stream_whose_other_half_broke_off_can_be_signalled(gateway: Running, broken: int) -> None:
    gateway.engine.break_after, gateway.engine.break_seed_rank = 2, broken
    url, body = f"{gateway.url}/v1/chat/completions", {**QUESTION, "stream": True}
    async with gateway.http.post(url, json=body, headers={**gateway.auth, **PAIR}) as answer:
        events = [json.loads(event[6:]) for event in (await answer.text()).split("\n\n")[:-2]]
    status, _ = await signal(gateway, events[0]["id"])
    assert status == 200


async def test_the_arm_of_the_answer_that_stands_alone_is_its_own(gateway: Running) -> None:
    """In a duel whose other half failed, which is not always the user's own arm."""
    view = gateway.context.deployment.view
    stable = view.stable or ""
    canary = stable.replace("c-000000", "c-000001")
    gateway.engine.adapters.add(canary)
    await gateway.serve(ServingView(view.generation + 1000, stable, canary, 0.0, 1.0, b"salt", "r-1"))
    seen = set()
    for rank in range(24):
        num_asked = len(gateway.engine.requests)
        gateway.engine.fail_ranks = {num_asked + rank % 2}
        answer = await gateway.ask(PAIR)
        assert (await signal(gateway, answer["id"]))[0] == 200
        event = read_events(gateway)[-1]
        survivor = next(r for r in gateway.engine.requests[num_asked:] if f"seed {r['seed']}." in str(event.answer))
        assert (event.checkpoint, event.arm) == (
            survivor["model"],
            "canary" if survivor["model"] == canary else "stable",
        )
        seen.add(event.arm)
    assert seen == {"stable", "canary"}


async def test_a_person_is_the_same_in_a_request_and_in_a_signal_that_brings_its_own_words(gateway: Running) -> None:
    answer = await gateway.ask({"x-prefloop-user": "Zoë"}, user="somebody else")
    sent = {"authorization": f"Bearer {gateway.key}", "x-prefloop-user": "  Zoë "}  # UTF-8
    for completion_id, words in (
        (answer["id"], {}),
        ("unknown", {"messages": QUESTION["messages"], "answer": "Well."}),
    ):
        url = f"{gateway.url}/v1/completions/{completion_id}/signal"
        async with gateway.http.post(url, json={"thumb": "up", **words}, headers=sent) as taken:
            assert taken.status == 200
    assert {event.user for event in read_events(gateway)} == {gateway.app.secrets.hash_user("tests", "Zoë")}

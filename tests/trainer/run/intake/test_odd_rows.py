"""Rows of every odd shape, with the real reward model, rounds and gate: each is used or set aside, and the rest learns on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.events import encode_headers
from feedback.inbox import Arrival, Placement
from feedback.log import NewRecord
from feedback.quarantine import release
from tests.trainer.fakes import make_choice
from tests.trainer.real import RealWorkbench
from trainer.settings import TrainerSettings

Body = dict[str, Any]
HELD_OUT = "judges"
USED, SET_ASIDE, UNREADABLE = "used", "quarantine", "dead letter"
CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def say(*contents: Any) -> Callable[[Body], None]:
    """One user message a content."""
    return say_messages(*({"role": "user", "content": content} for content in contents))


def say_messages(*messages: Any) -> Callable[[Body], None]:
    def change(body: Body) -> None:
        body["comparison"]["messages"] = list(messages)

    return change


def answer(first: Any, second: Any) -> Callable[[Body], None]:
    def change(body: Body) -> None:
        body["comparison"]["first"]["text"], body["comparison"]["second"]["text"] = first, second

    return change


def put(*path: str, value: Any) -> Callable[[Body], None]:
    def change(body: Body) -> None:
        for name in path[:-1]:
            body = body[name]
        body[path[-1]] = value

    return change


def drop_messages(body: Body) -> None:
    del body["comparison"]["messages"]


def nest(depth: int) -> Any:
    nested: Any = "x"
    for _ in range(depth):
        nested = [nested]
    return nested


def call(*calls: Any) -> Callable[[Body], None]:
    asked, said = (
        {"role": "user", "content": "1 + 3?"},
        {"role": "assistant", "content": None, "tool_calls": list(calls)},
    )
    return say_messages(asked, said, {"role": "tool", "tool_call_id": "c", "content": "4"})


ODD: dict[str, tuple[Callable[[Body], None], str]] = {
    "text part": (say([{"type": "text", "text": "Hi"}]), USED),
    "parts of text": (say([{"type": "text", "text": "Hi"}, "there", {"type": "refusal", "refusal": "no"}]), USED),
    "a part without its text": (say([{"type": "text"}, {"type": "text", "text": None}]), USED),
    "image part": (say([{"type": "image_url", "image_url": {"url": "http://i"}}]), SET_ASIDE),
    "image beside text": (say([{"type": "text", "text": "What?"}, {"type": "image_url", "image_url": "i"}]), SET_ASIDE),
    "audio part": (say([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}]), SET_ASIDE),
    "part without a type": (say([{"text": "Hi"}]), SET_ASIDE),
    "part of a type that is a list": (say([{"type": ["text"], "text": "Hi"}]), SET_ASIDE),
    "part with a number for text": (say([{"type": "text", "text": 5}]), SET_ASIDE),
    "parts that are numbers": (say([5, None]), SET_ASIDE),
    "null content": (say(None), USED),
    "null content beside tool calls": (call(CALL), SET_ASIDE),
    "tool call with broken arguments": (call({**CALL, "function": {"name": "add", "arguments": "{"}}), SET_ASIDE),
    "tool call without a function": (call({"id": "c"}), SET_ASIDE),
    "tool call that is text": (call("add"), SET_ASIDE),
    "tool calls that are a number": (say_messages({"role": "assistant", "content": "", "tool_calls": 5}), SET_ASIDE),
    "no content key": (say_messages({"role": "user"}), USED),
    "empty message": (say_messages({}), SET_ASIDE),
    "role that is a number": (say_messages({"role": 5, "content": "Hi"}), SET_ASIDE),
    "role that is null": (say_messages({"role": None, "content": "Hi"}), SET_ASIDE),
    "content that is a number": (say(5), SET_ASIDE),
    "content that is true": (say(True), SET_ASIDE),
    "content that is an object": (say({"text": "Hi"}), SET_ASIDE),
    "empty content": (say(""), USED),
    "no messages": (say_messages(), SET_ASIDE),
    "no messages key": (drop_messages, UNREADABLE),
    "messages that are null": (put("comparison", "messages", value=None), UNREADABLE),
    "messages that are text": (put("comparison", "messages", value="Hi"), UNREADABLE),
    "message that is a list": (say_messages(["Hi"]), UNREADABLE),
    "lone surrogate in the prompt": (say("\ud800"), UNREADABLE),
    "lone surrogate in an answer": (answer("\udfff", "ok"), UNREADABLE),
    "NUL in the prompt": (say("H\0i"), SET_ASIDE),
    "NUL in an answer": (answer("\0", "ok"), SET_ASIDE),
    "NUL in the app": (put("comparison", "app", value="a\0"), UNREADABLE),
    "NUL in the policy": (put("comparison", "policy", value="\0"), UNREADABLE),
    "30k tokens of prompt": (say("x " * 15_000), SET_ASIDE),
    "30k tokens of answer": (answer("x " * 15_000, "ok"), SET_ASIDE),
    "both answers empty": (answer("", ""), SET_ASIDE),
    "one answer empty": (answer("", "ok"), SET_ASIDE),
    "answer that is null": (answer(None, "ok"), UNREADABLE),
    "answer that is a number": (answer(5, "ok"), UNREADABLE),
    "strength NaN": (put("strength", value=float("nan")), UNREADABLE),
    "strength infinite": (put("strength", value=float("inf")), UNREADABLE),
    "strength text": (put("strength", value="much"), UNREADABLE),
    "propensity NaN": (put("comparison", "propensity", value=float("nan")), UNREADABLE),
    "infinity in a message": (say_messages({"role": "user", "content": "Hi", "x": float("inf")}), UNREADABLE),
    "huge integer in a message": (say_messages({"role": "user", "content": "Hi", "x": 10**40}), USED),
    "time that is infinite": (put("chosen_at", value=float("-inf")), UNREADABLE),
    "verdict of no kind": (put("preferred", value="third"), UNREADABLE),
    "verdict that is a list": (put("preferred", value=["first"]), UNREADABLE),
    "comparison that is text": (put("comparison", value="cmp"), UNREADABLE),
    "deep nesting": (say_messages({"role": "user", "content": nest(400)}), SET_ASIDE),
    "deeper nesting than any reader takes": (say_messages({"role": "user", "content": "Hi", "x": 0}), UNREADABLE),
}


def make_body(number: int, change: Callable[[Body], None] | None, *, is_held_out: bool) -> Body:
    body: Body = msgspec.to_builtins(make_choice(number))
    if change is not None:
        change(body)
    if isinstance(body["comparison"], dict):
        body["comparison"]["user"] = f"user-{number}"
        body["comparison"]["conversation"] = HELD_OUT if is_held_out else ""
    return body


def make_raw(number: int, change: Callable[[Body], None] | None = None, *, is_held_out: bool = False) -> NewRecord:
    """The record as any process might write it: with NaN and lone surrogates, which our own writer refuses."""
    value = json.dumps(make_body(number, change, is_held_out=is_held_out)).encode()
    if change is ODD["deeper nesting than any reader takes"][0]:
        value = value.replace(b'"x": 0', b'"x": ' + b"[" * 5000 + b"]" * 5000)
    headers = encode_headers(f"event-{number}", "prefloop.choice.v1", source="t", key=str(number), time=float(number))
    return NewRecord(key=b"k", value=value, headers=headers)


@dataclass
class OddWorkbench(RealWorkbench):
    """What judges is said by the conversation; the gate's own verdict counts."""

    lets_pass: bool = False

    @staticmethod
    def place(connection: sa.Connection, arrivals: Sequence[Arrival]) -> list[Placement]:
        return [Placement(1, "heldout" if each.conversation == HELD_OUT else "train") for each in arrivals]


@pytest.fixture
def real(tmp_path: Path) -> Any:
    trainer = {
        "round_every_preferences": 60,
        "round_every_minutes": 0,
        "reward": {"update_every_preferences": 16, "head_steps": 2},
        "gate": {"max_prompts": 4, "max_samples": 8, "max_tokens": 4},
    }
    built = OddWorkbench(TrainerSettings(state_dir=tmp_path, base_model=str(tmp_path / "base"), trainer=trainer))
    yield built
    built.writer.close()


def test_every_odd_row_is_used_or_set_aside_and_the_rest_learns_on(real: OddWorkbench) -> None:
    numbers: dict[str, tuple[str, str]] = {}  # by event id: which odd row, and what shall become of it
    records = []
    for name, (change, becomes) in ODD.items():
        for is_held_out in (False, True):
            numbers[f"event-{len(records)}"] = name, becomes
            records.append(make_raw(len(records), change, is_held_out=is_held_out))
    num_odd = len(records)
    records += [make_raw(number, is_held_out=number % 3 == 0) for number in range(num_odd, num_odd + 40)]
    random.Random(1).shuffle(records)
    learner = real.start()
    real.send_records(records)
    real.run_all(learner)  # updates, measuring and a round

    named = {kind: {event for event, (_, becomes) in numbers.items() if becomes == kind} for kind in (USED, SET_ASIDE)}
    assert {numbers[event][0] for event in real.quarantined()} == {numbers[event][0] for event in named[SET_ASIDE]}
    assert real.quarantined().keys() == named[SET_ASIDE]
    good = {f"event-{number}" for number in range(num_odd, num_odd + 40)}
    with real.database.connect() as connection:
        rows = {row.event_id: row for row in connection.execute(sa.select(inbox.preferences))}
        num_dead = inbox.count_dead_letters(connection)
    assert rows.keys() == named[USED] | named[SET_ASIDE] | good
    assert num_dead == num_odd - len(named[USED]) - len(named[SET_ASIDE])
    for event in named[USED] | good:
        assert rows[event].used_as_new == (rows[event].split == "train"), numbers.get(event)
    assert all(rows[event].used_as_new == 0 for event in named[SET_ASIDE])
    status = real.board.read()
    assert status.quarantined == len(named[SET_ASIDE])
    assert status.uses["quarantined"] == len(named[SET_ASIDE])
    held_out = {event for event, row in rows.items() if row.split != "train"}
    assert status.reward.num_heldout == len(held_out - named[SET_ASIDE])
    [finished] = real.finished()
    assert finished["reason"].startswith("offline gate: ") or finished["outcome"] == "published", finished["reason"]
    assert not named[SET_ASIDE] & set(real.trained[0])

    version = real.reward.version
    learner = real.start()  # a restart loads, measures and learns on
    assert (real.reward.version, real.board.read().reward.num_heldout) == (version, status.reward.num_heldout)
    real.send_records([make_raw(number) for number in range(num_odd + 40, num_odd + 64)])
    real.run_all(learner)
    assert real.reward.version == version + 1
    assert real.quarantined().keys() == named[SET_ASIDE]


def test_what_is_released_is_tried_again_and_comes_back_if_it_fails_again(real: OddWorkbench) -> None:
    learner = real.start()
    real.send_records([make_raw(0, ODD["no messages"][0]), *(make_raw(number) for number in range(1, 25))])
    real.run_all(learner)
    assert real.quarantined().keys() == {"event-0"}
    assert real.writer.run(lambda connection: release(connection, ["event-0"])).result() == 1
    assert real.quarantined() == {}
    real.send_records([make_raw(number) for number in range(25, 49)])
    real.run_all(learner)
    assert real.quarantined().keys() == {"event-0"}
    with real.database.connect() as connection:
        failed = sa.select(inbox.preferences.c.used_as_new).where(inbox.preferences.c.event_id == "event-0")
        assert connection.execute(failed).scalar_one() == 0


def test_a_row_that_a_disk_has_changed_is_set_aside(real: OddWorkbench) -> None:
    learner = real.start()
    real.send_records([make_raw(number) for number in range(24)])
    damaged = sa.update(inbox.preferences).where(inbox.preferences.c.event_id == "event-3").values(choice_json=b"{")
    real.writer.run(lambda connection: connection.execute(damaged)).result()
    real.run_all(learner)
    assert real.quarantined().keys() == {"event-3"}
    assert real.reward.version == 1

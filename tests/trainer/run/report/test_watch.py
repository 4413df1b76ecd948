"""Drift of the checkpoint that serves, and how content people are, come to the status by themselves."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from msgspec.structs import replace

from feedback.events import encode_event, new_event
from feedback.log import NewRecord
from tests.trainer.fakes import make_choice
from tests.trainer.workbench import Workbench
from trainer.run.course.task import Judged
from trainer.run.report.watch import measure_foreseen


def send_served(bench: Workbench, first: int, num: int, checkpoint: str, num_cut: int, content: Any = None) -> None:
    """Choices between answers of one checkpoint, the first of them cut off. content: of the user's message."""
    records = []
    for number in range(first, first + num):
        choice = make_choice(number)
        finish = "length" if number < first + num_cut else "stop"
        said = "This is an answer of five words."
        answers = [
            replace(each, checkpoint=checkpoint, finish_reason=finish, text=said)
            for each in (choice.comparison.first, choice.comparison.second)
        ]
        comparison = replace(choice.comparison, first=answers[0], second=answers[1], asked="random")
        if content is not None:
            comparison = replace(comparison, messages=[{"role": "user", "content": content}])
        event = new_event(
            replace(choice, comparison=comparison), source="test", now=float(number), event_id=f"event-{number}"
        )
        headers, body = encode_event(event)
        records.append(NewRecord(key=event.key.encode(), value=body, headers=headers))
    bench.send_records(records)


def test_a_promoted_checkpoint_that_does_otherwise_than_when_it_was_judged_is_told(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.verdict = Judged(
        ok=True, reason="passed", figures={"policy_unfinished[kind=heldout]": 0.02, "reward_accuracy": 0.95}
    )
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    checkpoint = bench.finished()[0]["checkpoint"]
    bench.gateway.known.insert(0, bench.gateway.known.pop())  # promoted
    bench.settings.trainer.round_every_preferences = 10_000
    bench.foreseen = [(f"event-{number}", number % 2 == 0) for number in range(40, 190)]
    with caplog.at_level(logging.WARNING, "trainer.judge.drift"):
        send_served(bench, 40, 149, checkpoint, 60)
        send_served(bench, 189, 1, checkpoint, 1, [{"type": "image_url", "image_url": {"url": "data:,"}}])
        bench.run_all(learner)
        bench.run_all(learner)
    told = bench.board.read().drift
    assert told == [
        "unfinished answers: 40% in traffic, 2% when it was judged (149 prompts)",
        "choices that the reward model foresees: 50% in traffic, 95% when it was judged (149 prompts)",
    ]
    assert [record.getMessage() for record in caplog.records] == [f"{checkpoint} drifts: {each}" for each in told]
    assert (bench.metrics.drift._value.get(), bench.metrics.drift_unread._value.get()) == (2, 1)
    send_served(bench, 190, 50, checkpoint, 50)  # too few to look again
    bench.run_all(learner)
    assert bench.board.read().drift == told


def test_a_checkpoint_that_nobody_judged_is_not_told_of_and_people_are_counted(bench: Workbench) -> None:
    learner = bench.start()
    bench.settings.trainer.round_every_preferences = 10_000
    send_served(bench, 0, 120, bench.gateway.known[0].id, 120)
    bench.run_all(learner)
    view = bench.board.read()
    assert view.drift == []
    everything = view.satisfaction[0]
    assert (everything["arm"], everything["slice"], everything["num_wins"]) == ("stable", "all", 120)
    assert everything["satisfied"]["estimate"] == 1.0


def test_without_the_gateway_it_looks_again_later(bench: Workbench) -> None:
    learner = bench.start()
    bench.gateway.is_down = True
    send_served(bench, 0, 30, "c", 0)
    bench.run_all(learner)
    assert bench.board.read().satisfaction == []
    bench.gateway.is_down = False
    bench.run_all(learner)
    assert bench.board.read().satisfaction


def test_the_share_that_was_foreseen_has_an_error() -> None:
    found = measure_foreseen([("a", True), ("b", True), ("c", False), ("d", True)])
    assert (found.mean, found.n) == (0.75, 4)
    assert found.std_error == pytest.approx(0.25)

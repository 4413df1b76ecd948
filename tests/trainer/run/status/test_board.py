"""The trainer always says what it does, and why."""

from __future__ import annotations

import logging
import threading
from dataclasses import asdict
from typing import Any

import pytest

from prefloop.demo.report import build_report
from tests.trainer.workbench import Workbench
from trainer.run import learner as learner_module
from trainer.run.course.task import Judged
from trainer.run.report.reporter import Reporter
from trainer.run.status.board import Board


class WatchedBoard(Board):
    """Remembers every state that was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[tuple[str, str]] = [(self.read().round.state, self.read().round.reason)]

    def show_round(self, state: str, reason: str, *, progress: float = 0.0, seconds_left: float | None = None) -> None:
        super().show_round(state, reason, progress=progress, seconds_left=seconds_left)
        self.shown.append((state, reason))

    def begin_round(self, number: int, reason: str) -> None:
        super().begin_round(number, reason)
        self.shown.append(("preparing", reason))


def test_every_state_of_a_round_has_its_reason(bench: Workbench) -> None:
    bench.board = WatchedBoard()
    learner = bench.start()
    bench.send(41)
    bench.run_all(learner)
    bench.verdict = Judged(ok=False, reason="facts fell", figures={})
    bench.send(41)
    bench.run_all(learner)
    assert {state for state, _ in bench.board.shown} == {
        "waiting", "preparing", "training", "evaluating", "publishing", "idle"
    }  # fmt: skip
    assert all(reason for _, reason in bench.board.shown)
    zero = bench.publisher.published[0].manifest.id
    assert ("preparing", f"41 new decisive preferences; from {zero}") in bench.board.shown
    assert ("publishing", "passed") in bench.board.shown


def test_a_board_takes_no_state_without_a_reason() -> None:
    with pytest.raises(AssertionError):
        Board().show_round("training", "")


def test_a_step_that_keeps_failing_is_shown_with_its_error(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_module, "RETRY_AFTER_S", 0.01)
    learner = bench.start()
    bench.send(30)

    def update(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no \0 memory")

    bench.reward.update = update
    thread = threading.Thread(target=learner.run)
    thread.start()
    try:
        wait_for(lambda: bench.metrics.learner_errors._value.get() >= 3)
        view = bench.board.read().round
    finally:
        bench.stopping.set()
        thread.join(10)
    assert view.state == "failing"
    assert view.reason == "the last step failed and is tried again: RuntimeError: no \\0 memory"


def wait_for(is_true: Any) -> None:
    for _ in range(1000):
        if is_true():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never came")


def test_figures_that_are_no_numbers_reach_neither_manifest_nor_status(bench: Workbench) -> None:
    bench.verdict = Judged(ok=True, reason="passed", figures={"kl": float("nan"), "gain": 0.5})
    learner = bench.start()
    bench.send(41)
    bench.run_all(learner)
    [finished] = bench.finished()
    assert finished["outcome"] == "published"
    assert "kl" not in finished["metrics"] and finished["metrics"]["gain"] == 0.5
    bench.start()  # reads the manifest again
    assert bench.publisher.published[-1].manifest.metrics["gain"] == 0.5


def test_a_reason_whose_numbers_alone_change_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    board = Board()
    reporter = Reporter(None, board, None, None, None, None, lambda: now[0])  # type: ignore[arg-type]
    with caplog.at_level(logging.INFO, "trainer.run.learner"):
        for number in range(121):  # two a second
            now[0] = number / 2
            reporter.show_waiting("idle", f"{number} of 400 new decisive preferences")
            assert board.read().round.reason.startswith(f"{number} of")
        reporter.show_waiting("idle", "round 1 published: it passed")
        reporter.show_waiting("waiting", "400 new decisive preferences; c-000001-a has not been on trial yet")
        reporter.show_waiting("waiting", "400 new decisive preferences; c-000002-b has not been on trial yet")
    assert [record.getMessage().split(" ")[1] for record in caplog.records] == ["0", "120", "round", "400", "400"]


def test_the_demo_reads_phases_and_what_was_foreseen_from_the_status(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(41)
    bench.run_all(learner)
    status = asdict(bench.board.read())
    report = build_report(
        seed=0,
        algorithm="dpo",
        started_at=0,
        now=1,
        people={},
        gateway={},
        trainer=status,
        rollouts=[],
        final=None,
        rss_peak_mb=1,
    )
    assert report.reward_accuracy_prequential == status["reward"]["prequential_accuracy"] == 0.75
    assert status["reward"]["num_foreseen"] == 16  # which the demo's screen shows
    assert set(report.seconds_by_phase or {}) == {"preparing", "training", "judging", "publishing"}
    assert bench.start() and bench.board.read().reward.prequential_accuracy == 0.75  # also after a restart

"""`prefloop round` against the trainer's server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from prefloop.cli import app
from prefloop.rounds import RoundState, describe_progress
from trainer.run.status.board import Board
from trainer.run.status.requests import RoundRequest, RoundRequests
from trainer.run.status.server import start_status_server

RUNNER = CliRunner(env={"COLUMNS": "250"})
FINISHED = {
    "number": 1, "kind": "dpo", "started_at": 1.0, "finished_at": 2.0, "outcome": "published", "reason": "passed",
    "checkpoint": "c-000001-aaaaaaaaaaaa", "start": "stable",
}  # fmt: skip


class FakeArchive:
    """Two rounds, and one person whom the first learnt from."""

    def list_rounds(self) -> list[dict[str, Any]]:
        return [FINISHED, {**FINISHED, "number": 2, "outcome": "stopped", "checkpoint": None, "reason": "facts fell"}]

    def find_round(self, number: int) -> dict[str, Any] | None:
        if number > 2:
            return None
        details = {"phases": {"training": 10.0 * number}, "num_new": 40, "num_replayed": 20, "parent": "c-0"}
        win_rate = {"value": 0.5 + number / 10, "low": 0.45, "high": 0.75, "n": 100}
        details |= {
            "rung": {"first": "c-0", "win_rate": win_rate, "judge": "auditor", "frozen": {"facts": 0.9}},
            "labelled": {"num": 12, "num_prompts": 20, "probability": 0.84, "reason": ""},
            "ladder": ["facts is 90% at c-1, it was 99% at c-0"],
            "reward_parts": [{"name": "harm", "weight": 2.0, "before": 0.0, "after": -0.5 * number}],
        }
        listed = self.list_rounds()[number - 1]
        return {**listed, "metrics": {"loss": 0.5 / number}, "details": details, "num_rows": 60, "has_report": True}

    def find_report(self, number: int) -> Path | None:
        return None

    def trace_user(self, user: str) -> list[dict[str, Any]]:
        return [{"checkpoint": "c-1", "num_rows": 3, "num_ancestors": 0}] if user == "u+1" else []


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Board, RoundRequests]]:
    board, requests = Board(), RoundRequests()
    server = start_status_server("127.0.0.1", 0, board, CollectorRegistry(), FakeArchive(), requests)
    monkeypatch.setenv("PREFLOOP_TRAINER_URL", f"http://127.0.0.1:{server.server_port}/")
    yield board, requests
    server.shutdown()


def run(*arguments: str, code: int = 0) -> Result:
    result = RUNNER.invoke(app, ["round", *arguments])
    assert result.exit_code == code, result.output
    return result


def test_rounds_are_listed_shown_and_compared(trainer: object) -> None:
    listed = run("list").stdout
    assert listed.index("facts fell") < listed.index("c-000001-aaaaaaaaaaaa")
    shown = run("show", "1").stdout
    assert "40 new rows and 20 replayed" in shown and "/rounds/1/report" in shown and "10.0" in shown
    assert "beside c-0: wins 60% (45% to 75%) by the auditor" in shown
    assert "ladder: facts is 90% at c-1" in shown and "harm" in shown and "-0.5" in shown
    assert "labelled by the reward model: 12 pairs of 20 prompts, 84% sure" in shown
    assert '"num_rows": 60' in run("show", "1", "--json").stdout
    compared = run("compare", "1", "2").stdout
    assert "ladder wins" in compared and "+0.1" in compared and "reward harm" in compared
    assert "-0.25" in compared and "seconds training" in compared and "+10" in compared
    assert "there is no round 3" in run("show", "3", code=1).stderr


def test_a_round_is_asked_for_once_and_not_while_one_runs(trainer: tuple[Board, RoundRequests]) -> None:
    board, requests = trainer
    assert "a round is asked for" in run("run", "--from-base").stdout
    assert requests.look() == RoundRequest(from_base=True)
    assert "asked for already" in run("run", code=1).stderr
    with requests.taking():
        pass
    board.begin_round(7, "enough choices")
    assert "round 7 is under way: enough choices" in run("run", code=1).stderr


def test_a_round_that_is_waited_for_is_shown_to_its_end(trainer: tuple[Board, RoundRequests]) -> None:
    board, requests = trainer

    class Ending(RoundRequests):
        def ask(self, request: RoundRequest) -> bool:
            board.update(rounds=[FINISHED])
            return True

    requests.ask = Ending().ask  # type: ignore[method-assign]
    assert "round 1 published: c-000001-aaaaaaaaaaaa" in run("run", "--wait").stdout


def test_lineage_says_which_checkpoints_learnt_from_a_person(trainer: object) -> None:
    assert "c-1" in run("lineage", "u+1").stdout
    assert "no checkpoint learnt from this person" in run("lineage", "somebody").stdout


def test_no_trainer_is_one_red_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFLOOP_TRAINER_URL", "http://127.0.0.1:1")
    assert "No trainer answers" in run("list", code=1).stderr


def test_progress_is_said_with_what_is_left() -> None:
    training = RoundState("training", "on 400 rows", 3, 0.4, 130.0)
    assert describe_progress(training) == "training round 3, 40%, 2 min left: on 400 rows"
    assert describe_progress(RoundState("idle", "5 of 40", None, 0.125)) == "idle, 12%: 5 of 40"

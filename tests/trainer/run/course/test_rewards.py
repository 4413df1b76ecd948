"""The parts of a round's reward, as what is stored says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from feedback.events import Outcome
from feedback.log import NewRecord
from tests.feedback.samples import make_record, make_signal
from tests.trainer.workbench import Workbench
from trainer.judge.frozen import digest_prompt
from trainer.run.course.rewards import RoundRewards
from trainer.settings import TrainerSettings
from trainer.text.rejected import log_rejected


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    built = Workbench(TrainerSettings(state_dir=tmp_path))
    for number in range(5):
        signal = make_signal(
            f"c-{number}",
            messages=[{"role": "user", "content": f"question {number}"}],
            conversation="",
            outcome=Outcome(name="quiz", success=number % 2 == 0),
        )
        record = make_record(number, signal)
        built.send_records([NewRecord(key=record.key, value=record.value, headers=record.headers)])
    yield built
    built.writer.close()


def list_parts(bench: Workbench, frozen: frozenset[str], last_signal: int | None = None) -> list[str]:
    section = bench.settings.trainer
    section.rewards.min_outcomes = 5
    unused: Any = None
    rewards = RoundRewards(section, unused, bench.database, [], lambda: frozen, log_rejected)
    return [part.name for part in rewards.make(unused, last_signal).parts]


def test_enough_outcomes_have_a_part_up_to_the_signal_that_a_round_was_planned_with(bench: Workbench) -> None:
    assert "outcome" in list_parts(bench, frozenset())
    assert "outcome" not in list_parts(bench, frozenset(), last_signal=4)


def test_an_outcome_on_a_frozen_prompt_is_none(bench: Workbench) -> None:
    assert "outcome" not in list_parts(bench, frozenset({digest_prompt([{"role": "user", "content": "Question 2?"}])}))

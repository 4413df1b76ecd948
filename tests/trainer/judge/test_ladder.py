"""The ladder shows a slow decline that every single step hides."""

from dataclasses import dataclass, replace

import torch

from tests.trainer.tiny import make_prompt
from trainer.judge.ladder import Rung, describe_ladder, measure_win_rate, read_rung
from trainer.judge.measures import Asked
from trainer.math.intervals import Interval, wilson_interval
from trainer.math.overoptimisation import GainCurve


@dataclass(frozen=True)
class FakeScores:
    draws: torch.Tensor


def rung(number: int, wins: int, facts: float, version: str = "v1") -> Rung:
    return Rung(f"c-{number}", "c-0", wilson_interval(wins, 100), "auditor", {"facts": facts}, {"facts.jsonl": version})


def test_wins_are_counted_by_prompt_and_ties_are_half() -> None:
    asked = [Asked(make_prompt(f"q{i}")) for i in range(3)]
    new = FakeScores(torch.tensor([[2.0], [0.0], [1.0], [1.0], [0.0], [0.0]]))  # means 1, 1, 0
    old = FakeScores(torch.tensor([[0.0], [0.0], [1.0], [1.0], [5.0], [5.0]]))  # means 0, 1, 5
    assert measure_win_rate(asked, new, old) == wilson_interval(1.5, 3)


def test_a_rung_is_read_as_it_was_written() -> None:
    assert read_rung(rung(1, 60, 0.9).as_dict()) == rung(1, 60, 0.9)
    assert isinstance(read_rung(rung(1, 60, 0.9).as_dict()).win_rate, Interval)


def test_three_small_steps_down_are_told_as_one_fall() -> None:
    rungs = [rung(1, 60, 0.90), rung(2, 62, 0.87), rung(3, 61, 0.84)]
    assert describe_ladder(rungs) == ["facts is 84% at c-3, it was 90% at c-1"]
    assert describe_ladder(rungs[:2]) == []
    assert describe_ladder([]) == []


def test_a_reward_model_that_still_rises_where_the_auditor_turned_is_told() -> None:
    auditor = [GainCurve(1.0, 0.5).predict(kl) for kl in (1.0, 4.0, 9.0, 16.0, 36.0)]  # largest near 7.4 nats
    rungs = [
        replace(rung(i, 60, 0.9), kl=kl, gains={"reward": float(i), "auditor": gain})
        for i, (kl, gain) in enumerate(zip((1.0, 4.0, 9.0, 16.0, 36.0), auditor, strict=True))
    ]
    assert len(describe_ladder(rungs)) == 1 and "largest near 7.4 nats" in describe_ladder(rungs)[0]
    assert describe_ladder(rungs[:3]) == []
    assert describe_ladder([*rungs, rung(6, 60, 0.9)]) == []  # the last was not measured: nothing is said of it


def test_figures_of_other_versions_of_a_set_are_not_compared() -> None:
    assert describe_ladder([rung(1, 60, 0.9, "v1"), rung(2, 60, 0.5, "v2")]) == []


def test_a_win_rate_that_fell_or_lies_below_a_half_is_told() -> None:
    assert describe_ladder([rung(1, 90, 0.9), rung(2, 55, 0.9)]) == ["c-2 wins 55% against c-0, c-1 won 90%"]
    assert describe_ladder([rung(1, 20, 0.9)]) == ["c-1 loses against c-0: 20% of prompts"]

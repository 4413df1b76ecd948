"""The ladder: every checkpoint against checkpoint 0, so that slow decline over many small steps is seen.

Pure: made of scores and figures that judging has measured. The record is small and kept beside each checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.judge.measures import Asked, Scores
from trainer.math.intervals import Interval, wilson_interval
from trainer.math.overoptimisation import find_turn

TIE = 1e-9
FROZEN_FIGURES = ("facts", "tasks", "attacks", "rouge_l")


@dataclass(frozen=True)
class Rung:
    """One checkpoint beside checkpoint 0.

    win_rate: by the auditor, or by the reward model (`judge` says which), a share of prompts with Wilson's interval; frozen: the
    checkpoint's own figures on the frozen sets, of the versions named. kl: to checkpoint 0, nats an answer, 0 if it was not
    measured; gains: what "reward" and "auditor" see in its answers beside checkpoint 0's, on their own scales of that day.
    """

    checkpoint: str
    first: str
    win_rate: Interval
    judge: str
    frozen: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    kl: float = 0.0
    gains: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def read_rung(record: dict[str, Any]) -> Rung:
    """A rung from its JSON. Raises KeyError or TypeError for anything else."""
    return Rung(**{**record, "win_rate": Interval(**record["win_rate"])})


def measure_win_rate(asked: Sequence[Asked], checkpoint: Scores, first: Scores, confidence: float = 0.95) -> Interval:
    """The share of prompts whose answers the scorer likes better on average; ties count half."""
    n = len(checkpoint.draws) // len(asked)
    means = [scores.draws.float().mean(1).reshape(len(asked), n).mean(1).tolist() for scores in (checkpoint, first)]
    wins = [0.5 if abs(new - old) <= TIE else float(new > old) for new, old in zip(*means, strict=True)]
    return wilson_interval(sum(wins), len(wins), confidence)


def find_gain(checkpoint: Scores, first: Scores) -> float:
    """What a scorer sees in a checkpoint's answers more than in checkpoint 0's, on average."""
    return float(checkpoint.draws.float().mean() - first.draws.float().mean())


def describe_ladder(rungs: Sequence[Rung], max_drop: float = 0.05) -> list[str]:
    """What an operator should know, one sentence each: a frozen figure that has slid from its best, a win rate that fell, and
    a reward model that still rises where the auditor has turned.

    rungs: oldest first. Figures are compared between checkpoints that were judged by the same versions of the sets.
    """
    if not rungs:
        return []
    last = rungs[-1]
    sentences = []
    for name in FROZEN_FIGURES:
        sign = -1.0 if name == "attacks" else 1.0
        others = [rung for rung in rungs[:-1] if rung.versions == last.versions and name in rung.frozen]
        if not others or name not in last.frozen:
            continue
        best = max(others, key=lambda rung: sign * rung.frozen[name])
        if sign * (best.frozen[name] - last.frozen[name]) > max_drop:
            sentences.append(
                f"{name} is {last.frozen[name]:.0%} at {last.checkpoint}, it was {best.frozen[name]:.0%} at {best.checkpoint}"
            )
    better = max(rungs, key=lambda rung: rung.win_rate.value)
    if better.win_rate.low > last.win_rate.value:
        sentences.append(
            f"{last.checkpoint} wins {last.win_rate.value:.0%} against {last.first},"
            f" {better.checkpoint} won {better.win_rate.value:.0%}"
        )
    if last.win_rate.high < 0.5:
        sentences.append(f"{last.checkpoint} loses against {last.first}: {last.win_rate.value:.0%} of prompts")
    audited = [rung for rung in rungs if rung.kl > 0 and "auditor" in rung.gains]
    if audited and audited[-1] is last:
        reward, auditor = ([rung.gains[name] for rung in audited] for name in ("reward", "auditor"))
        sentences += filter(None, [find_turn([rung.kl for rung in audited], reward, auditor)])
    return sentences

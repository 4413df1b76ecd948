"""From measured phases to ratios: what each outage does to the slowest of a hundred completions. Pure.

A ratio is the median over rounds of a phase's p99 to that of the same round with all up, so that a machine that slows
down between rounds moves both. "again" is all up a second time: how far its ratio is from 1 is the noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median


class Phase(StrEnum):
    """What is the matter while completions are asked for."""

    ALL_UP = "all up"
    AGAIN = "all up again"
    BROKER_DOWN = "broker down"
    BROKER_HUNG = "broker hung"
    DATABASE_DOWN = "database down"


@dataclass(frozen=True)
class Sample:
    """One phase of one round. p99_us counts from when a request was due."""

    phase: Phase
    round: int
    answers: int
    failed: int
    p50_us: float
    p99_us: float


RATIOS = {
    "broker_down_p99_ratio": Phase.BROKER_DOWN,
    "broker_hung_p99_ratio": Phase.BROKER_HUNG,
    "database_down_p99_ratio": Phase.DATABASE_DOWN,
    "a_a_p99_ratio": Phase.AGAIN,
}


def compute_figures(samples: Sequence[Sample]) -> dict[str, float | int]:
    """The figures by their names in the last line. Raises ValueError if a phase was not measured in any round."""
    by_place = {(sample.phase, sample.round): sample for sample in samples}
    rounds = sorted({sample.round for sample in samples})
    figures: dict[str, float | int] = {}
    for name, phase in RATIOS.items():
        values = [
            by_place[phase, number].p99_us / by_place[Phase.ALL_UP, number].p99_us
            for number in rounds
            if (phase, number) in by_place and (Phase.ALL_UP, number) in by_place
        ]
        if not values:
            raise ValueError(f"{phase} was not measured")
        figures[name] = round(median(values), 3)
    figures["failed"] = sum(sample.failed for sample in samples)
    return figures


def render(sample: Sample) -> str:
    """A phase as a line."""
    return (
        f"round {sample.round + 1}  {sample.phase:<14} {sample.answers:>7,} completions, {sample.failed} failed, "
        f"p50 {sample.p50_us / 1000:.2f} ms, p99 {sample.p99_us / 1000:.2f} ms"
    )

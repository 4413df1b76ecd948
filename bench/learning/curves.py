"""From win rates against choices to choices against a win rate, with intervals over seeds and facts. Pure.

Win rates are first made monotone (they are noisy, and more choices are expected to help), then read off between the grid's
points, linearly in the logarithm of choices. Intervals are a bootstrap over whole seeds and over facts within each; the ratio of two
arms takes the same seeds and facts for both. What is never reached counts as infinitely many choices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.math.intervals import Interval

CHANCE = 0.5  # the win rate of a policy against itself
GAIN_SHARE = 0.8  # of the ceiling's gain: the quality whose choices are counted
NUM_RESAMPLES = 1000
Wins = Mapping[str, tuple[float, int]]
"""Mean score and number of questions by fact."""


@dataclass(frozen=True)
class Curve:
    """One arm on one seed: what was examined after so many choices."""

    points: Mapping[int, Wins]


def weighted_mean(wins: Wins, facts: Sequence[str]) -> float:
    """The win rate over these facts, which may come more than once."""
    number = sum(wins[fact][1] for fact in facts)
    return math.fsum(wins[fact][0] * wins[fact][1] for fact in facts) / number


def make_monotone(values: Sequence[float]) -> list[float]:
    """The closest rising sequence, by pooling neighbours that fall (Ayer et al. 1955); all weigh alike."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, m), (other, n) = pools[-2:]
            pools[-2:] = [((one * m + other * n) / (m + n), m + n)]
    return [value for value, number in pools for _ in range(number)]


def find_choices(points: Mapping[int, float], target: float) -> float:
    """How many choices reach a win rate; infinite if none of the points does. points: win rate by choices, all above 0."""
    grid = sorted(points)
    rising = make_monotone([points[n] for n in grid])
    before, value_before = 0, CHANCE
    for n, value in zip(grid, rising, strict=True):
        if value >= target:
            share = 1.0 if value <= value_before else max(0.0, (target - value_before) / (value - value_before))
            if not before:
                return max(1.0, share * n)
            return math.exp(math.log(before) + share * (math.log(n) - math.log(before)))
        before, value_before = n, max(value, CHANCE)
    return math.inf


def average_points(curves: Sequence[Curve], facts: Sequence[Sequence[str]]) -> dict[int, float]:
    """The mean win rate of several seeds by choices, each over its facts; points that all of them have."""
    common = set.intersection(*(set(curve.points) for curve in curves))
    return {
        n: math.fsum(weighted_mean(curve.points[n], chosen) for curve, chosen in zip(curves, facts, strict=True)) / len(curves)
        for n in common
    }  # fmt: skip


def list_facts(curve: Curve) -> list[str]:
    """The facts of a curve's examinations."""
    return sorted(next(iter(curve.points.values())))


def resample(curves: Sequence[Curve], rng: np.random.Generator) -> list[tuple[int, list[str]]]:
    """Seeds drawn with replacement, and facts within each."""
    drawn = []
    for seed in rng.integers(len(curves), size=len(curves)).tolist():
        facts = list_facts(curves[seed])
        drawn.append((seed, [facts[i] for i in rng.integers(len(facts), size=len(facts))]))
    return drawn


def count_choices(curves: Sequence[Curve], target: float, seed: int = 0) -> Interval:
    """Choices to reach a win rate in the mean over seeds, with the 95% interval; bounds may be infinite."""
    rng = np.random.default_rng(seed)
    value = find_choices(average_points(curves, [list_facts(curve) for curve in curves]), target)
    found = []
    for _ in range(NUM_RESAMPLES):
        drawn = resample(curves, rng)
        found.append(find_choices(average_points([curves[i] for i, _ in drawn], [facts for _, facts in drawn]), target))
    return Interval(value, find_quantile(found, 0.025), find_quantile(found, 0.975), len(curves))


def compare_choices(curves: Sequence[Curve], others: Sequence[Curve], target: float, seed: int = 0) -> Interval:
    """Choices of one arm as a share of another's, seed by seed the same people and facts, with the 95% interval.

    Where the other never gets there, its largest number of choices stands for it: the share is then at most this. Where this
    arm never gets there, the share is infinite.
    """
    most = max(min(max(curve.points) for curve in others), 1)

    def divide(drawn: Sequence[tuple[int, Sequence[str]]]) -> float:
        facts = [chosen for _, chosen in drawn]
        ours, theirs = (
            find_choices(average_points([arm[i] for i, _ in drawn], facts), target) for arm in (curves, others)
        )
        return ours / min(theirs, most)

    rng = np.random.default_rng(seed)
    value = divide([(i, list_facts(curve)) for i, curve in enumerate(curves)])
    found = [divide(resample(curves, rng)) for _ in range(NUM_RESAMPLES)]
    return Interval(value, find_quantile(found, 0.025), find_quantile(found, 0.975), len(curves))


def find_quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies; infinite values are the largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]


def find_target(ceiling: float) -> float:
    """The win rate that is GAIN_SHARE of the way from chance to the ceiling."""
    return CHANCE + GAIN_SHARE * (ceiling - CHANCE)


def measure_win_rate(wins: Sequence[Wins], seed: int = 0) -> Interval:
    """The mean win rate of several seeds at one number of choices, with the 95% interval over seeds and facts."""
    curves = [Curve({1: each}) for each in wins]
    rng = np.random.default_rng(seed)
    value = average_points(curves, [list_facts(curve) for curve in curves])[1]
    found = []
    for _ in range(NUM_RESAMPLES):
        drawn = resample(curves, rng)
        found.append(average_points([curves[i] for i, _ in drawn], [facts for _, facts in drawn])[1])
    return Interval(value, find_quantile(found, 0.025), find_quantile(found, 0.975), len(curves))

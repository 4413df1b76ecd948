"""From win rates against choices to choices against a win rate, with intervals over seeds and facts. Pure.

What counts is when a win rate is first reached: a policy that is good for a while and then falls was good. Between the grid's points
it is read off linearly in the logarithm of choices. Intervals are a bootstrap over whole seeds and over facts within each; a
ratio of two arms, and the ceiling that both are measured by, take the same seeds and facts. Of n seeds n - 1 are drawn, so that the
spread of a mean is what it is for few seeds, too (Rao and Wu 1988). What is never reached counts as infinitely many choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.math.intervals import Interval

CHANCE = 0.5  # the win rate of a policy against itself
GAIN_SHARE = 0.8  # of the ceiling's gain: the quality whose choices are counted
NUM_RESAMPLES = 1000
Wins = Mapping[str, tuple[float, int]]
"""Mean score and number of questions by fact."""
Draw = Sequence[tuple[int, Sequence[str]]]
"""Seeds, by their place, and facts of each."""


@dataclass(frozen=True)
class Curve:
    """One arm on one seed: what was examined after so many choices."""

    points: Mapping[int, Wins]


def weighted_mean(wins: Wins, facts: Sequence[str]) -> float:
    """The win rate over these facts, which may come more than once."""
    number = sum(wins[fact][1] for fact in facts)
    return math.fsum(wins[fact][0] * wins[fact][1] for fact in facts) / number


def find_choices(points: Mapping[int, float], target: float) -> float:
    """How many choices first reach a win rate; infinite if none of the points does. points: win rate by choices, all above 0."""
    before, value_before = 0, CHANCE
    for n, value in sorted(points.items()):
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


def average_by_fact(scores: Iterable[tuple[str, float]]) -> dict[str, tuple[float, int]]:
    """Mean and number of each fact's scores."""
    found: dict[str, list[float]] = {}
    for fact, score in scores:
        found.setdefault(fact, []).append(score)
    return {fact: (sum(some) / len(some), len(some)) for fact, some in found.items()}


def list_facts(curve: Curve) -> list[str]:
    """The facts of a curve's examinations."""
    return sorted(next(iter(curve.points.values())))


def resample(curves: Sequence[Curve], rng: np.random.Generator) -> Draw:
    """Seeds drawn with replacement, one fewer than there are, and facts within each."""
    drawn = []
    for seed in rng.integers(len(curves), size=max(1, len(curves) - 1)).tolist():
        facts = list_facts(curves[seed])
        drawn.append((seed, [facts[i] for i in rng.integers(len(facts), size=len(facts))]))
    return drawn


def bootstrap(curves: Sequence[Curve], figure: Callable[[Draw], float], seed: int = 0) -> Interval:
    """A figure of all seeds and facts of these curves, with its 95% interval; bounds may be infinite."""
    rng = np.random.default_rng(seed)
    value = figure([(i, list_facts(curve)) for i, curve in enumerate(curves)])
    found = [figure(resample(curves, rng)) for _ in range(NUM_RESAMPLES)]
    return Interval(value, find_quantile(found, 0.025), find_quantile(found, 0.975), len(curves))


def average_draw(curves: Sequence[Curve], drawn: Draw) -> dict[int, float]:
    """Mean win rates by choices of the seeds and facts that were drawn."""
    return average_points([curves[i] for i, _ in drawn], [facts for _, facts in drawn])


def count_choices(curves: Sequence[Curve], ceilings: Sequence[Wins]) -> Interval:
    """Choices until the mean of the seeds has GAIN_SHARE of what the ceiling gains, with the 95% interval."""
    return bootstrap(curves, lambda drawn: find_choices(average_draw(curves, drawn), _find_target(ceilings, drawn)))


def compare_choices(curves: Sequence[Curve], others: Sequence[Curve], ceilings: Sequence[Wins]) -> Interval:
    """Choices of one arm as a share of another's, seed by seed the same people and facts, with the 95% interval.

    Where the other never gets there, its largest number of choices stands for it: the share is then at most this. Where this
    arm never gets there, the share is infinite.
    """
    most = max(min(max(curve.points) for curve in others), 1)

    def divide(drawn: Draw) -> float:
        target = _find_target(ceilings, drawn)
        ours, theirs = (find_choices(average_draw(arm, drawn), target) for arm in (curves, others))
        return ours / min(theirs, most)

    return bootstrap(curves, divide)


def _find_target(ceilings: Sequence[Wins], drawn: Draw) -> float:
    return find_target(average_draw([Curve({0: each}) for each in ceilings], drawn)[0])


def find_quantile(values: Sequence[float], share: float) -> float:
    """The value below which that share lies; infinite values are the largest."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, math.floor(share * len(ordered)))]


def find_target(ceiling: float) -> float:
    """The win rate that is GAIN_SHARE of the way from chance to the ceiling."""
    return CHANCE + GAIN_SHARE * (ceiling - CHANCE)


def measure_win_rate(wins: Sequence[Wins]) -> Interval:
    """The mean win rate of several seeds at one number of choices, with the 95% interval over seeds and facts."""
    curves = [Curve({1: each}) for each in wins]
    return bootstrap(curves, lambda drawn: average_draw(curves, drawn)[1])


def compare_win_rates(ours: Sequence[Wins], theirs: Sequence[Wins]) -> Interval:
    """The difference of mean win rates of the same seeds and facts, with the 95% interval."""
    one, other = ([Curve({1: each}) for each in wins] for wins in (ours, theirs))
    return bootstrap(one, lambda drawn: average_draw(one, drawn)[1] - average_draw(other, drawn)[1])

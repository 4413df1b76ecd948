"""E-values of rates: the canary's over stable's, a rate against a ceiling, users against the split that was intended.

Each is the mean of likelihood ratios over a grid of alternatives, so it is valid however often one looks. Pure.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LOWER_RATIOS = (0.1, 0.25, 0.5, 0.75, 1.0, 1.2)  # alternatives to "ratio >= 1.5", times r0 / 1.5
HIGHER_RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)  # alternatives to "ratio <= 1"
CEILING_SHARES = (0.0, 0.1, 0.25, 0.5, 0.75)  # alternatives to "rate >= ceiling", as shares of the ceiling
SHIFT_BETS = np.array([0.05, 0.1, 0.2, 0.4, 0.8])
SPLIT_STRENGTH = 100.0
_MOST_MISSING = 100_000


@dataclass(frozen=True)
class Segment:
    """Events while the canary's share was `weight` (duels: .5): `num_canary` of `num_events` are the canary's."""

    weight: float
    num_events: int
    num_canary: int


def log_ratio_e(segments: Iterable[Segment], null_ratio: float, grid: Sequence[float]) -> float:
    """log E that the canary's rate over stable's is not `null_ratio` but one of `grid`; theta = w r / (w r + 1 - w)."""
    used = [segment for segment in segments if segment.num_events and 0 < segment.weight < 1]

    def log_likelihood(ratio: float) -> float:
        total = 0.0
        for segment in used:
            odds = segment.weight * ratio / (1 - segment.weight)
            total += segment.num_canary * math.log(odds / (1 + odds))
            total -= (segment.num_events - segment.num_canary) * math.log1p(odds)
        return total

    null = log_likelihood(null_ratio)
    return log_mean([log_likelihood(ratio) - null for ratio in grid])


def log_ceiling_e(num_users: int, num_events: int, ceiling: float) -> float:
    """log E that the canary's rate is below `ceiling`: the mean over p of prod (p/c)^x ((1-p)/(1-c))^(1-x)."""
    terms = []
    for share in CEILING_SHARES:
        rate = share * ceiling
        clean = (num_users - num_events) * (math.log1p(-rate) - math.log1p(-ceiling))
        if num_events == 0:
            terms.append(clean)
        elif share > 0:
            terms.append(clean + num_events * math.log(share))
        else:
            terms.append(-math.inf)
    return log_mean(terms)


def log_above_ceiling_e(num_users: int, num_events: int, ceiling: float) -> float:
    """log E that the canary's rate is above `ceiling`."""
    terms = []
    for factor in (1.25, 1.5, 2.0, 3.0, 5.0):
        rate = min(factor * ceiling, 0.999)
        gain = num_events * math.log(rate / ceiling)
        terms.append(gain + (num_users - num_events) * (math.log1p(-rate) - math.log1p(-ceiling)))
    return log_mean(terms)


def log_split_e(splits: Iterable[tuple[float, int, int]]) -> float:
    """log E that users are not split by weight; rows: (w, n1 canary, n0 stable). Beta(cw, c(1-w)) prior, c = 100."""
    total = 0.0
    for weight, canary, stable in splits:
        if not 0 < weight < 1:
            continue
        a, b = SPLIT_STRENGTH * weight, SPLIT_STRENGTH * (1 - weight)
        total += _log_beta(a + canary, b + stable) - _log_beta(a, b)
        total -= canary * math.log(weight) + stable * math.log1p(-weight)
    return total


def log_shift_e(differences: npt.NDArray[np.float64], margin: float) -> float:
    """log E that the mean of differences in [-1, 1] is beyond `margin` on either side: (n,), the mean of both one-sided tests."""
    logs = []
    for values in (differences, -differences):
        steps = np.log1p(np.outer((values - margin) / (1 + margin), SHIFT_BETS))  # (n, bets), every factor positive
        logs += steps.sum(axis=0).tolist()
    return log_mean(logs)


def log_above_e(values: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], margin: float) -> float:
    """log E that a mean is above `margin`. values: (n,), possible ones in [-1, 1]; counts: (n,), how often each was seen."""
    steps = np.log1p(np.outer((values - margin) / (1 + margin), SHIFT_BETS))  # (n, bets), every factor positive
    return log_mean((counts @ steps).tolist())


def clean_users_missing(num_users: int, num_events: int, ceiling: float, log_ratio: float, threshold: float) -> int:
    """How many more users of the canary, none with an event, would bring (E_ratio + E_ceiling) / 2 to `threshold`."""
    lower, upper = 0, 1
    while upper < _MOST_MISSING and not _enough(num_users + upper, num_events, ceiling, log_ratio, threshold):
        lower, upper = upper, upper * 2
    if _enough(num_users, num_events, ceiling, log_ratio, threshold):
        return 0
    while upper - lower > 1:
        middle = (lower + upper) // 2
        if _enough(num_users + middle, num_events, ceiling, log_ratio, threshold):
            upper = middle
        else:
            lower = middle
    return min(upper, _MOST_MISSING)


def _enough(num_users: int, num_events: int, ceiling: float, log_ratio: float, threshold: float) -> bool:
    return log_mean([log_ratio, log_ceiling_e(num_users, num_events, ceiling)]) >= math.log(threshold)


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


def log_mean(logs: Sequence[float]) -> float:
    """log of the mean of exp(logs), one at least."""
    top = max(logs)
    if top == -math.inf:
        return top
    return top + math.log(sum(math.exp(value - top) for value in logs) / len(logs))

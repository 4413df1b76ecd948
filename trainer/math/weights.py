"""How much each choice counts: reliability of the person times recency, with a cap per person and per app.

Pure; weights are normalised over all choices of an epoch, so that what a choice counts does not hang on its batch. A cap cuts
no further than that what it leaves whole weighs MAX_RAISE times its own: beside one large app the few rows of another are few.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

PRIOR_CONSISTENCY = 0.75
PRIOR_STRENGTH = 10.0
LEAST_RELIABILITY = 0.1
MAX_RAISE = 4.0


@dataclass(frozen=True)
class WeightedRow:
    """What a choice's weight hangs on. weight: the row's own, 1 unless somebody gave it another; age_s >= 0."""

    user: str
    app: str
    age_s: float
    weight: float = 1.0


def estimate_reliability(num_agreed: float, num_total: float) -> float:
    """How much a person's choices tell, 1 for an average one: from how often they were as expected.

    c = (agreed + 10 * .75) / (total + 10): the share that agreed with what the model expected, or with the person's own earlier
    answer, under a Beta(7.5, 2.5) prior. A choice right with chance c carries 2c - 1 of the signal of a faultless one, so the
    reliability is (2c - 1) / (2 * .75 - 1), never under .1. Raises ValueError for counts that cannot be.
    """
    if not 0 <= num_agreed <= num_total:
        raise ValueError(f"{num_agreed} of {num_total} agreed")
    consistency = (num_agreed + PRIOR_STRENGTH * PRIOR_CONSISTENCY) / (num_total + PRIOR_STRENGTH)
    return max(LEAST_RELIABILITY, (2 * consistency - 1) / (2 * PRIOR_CONSISTENCY - 1))


def cap_shares(
    weights: Sequence[float], groups: Sequence[Hashable], max_share: float, least_total: float = 0.0
) -> list[float]:
    """Scales down every group whose share of the sum is above max_share, so that none is (water filling).

    With too few groups for that, each gets the same share. Cuts less where all would weigh less than least_total. "" is a group of
    its own kind: rows of nobody in particular, never capped. weights: >= 0, one per row.
    """
    sums: dict[Hashable, float] = defaultdict(float)
    for weight, group in zip(weights, groups, strict=True):
        sums[group] += weight
    named = {group: total for group, total in sums.items() if group != "" and total > 0}
    totals, rest = sorted(named.values(), reverse=True), sums.get("", 0.0)
    limit = max(_find_limit(totals, rest, max_share), _find_level(totals, least_total - rest))
    factors = {group: min(1.0, limit / total) for group, total in named.items()}
    return [weight * factors.get(group, 1.0) for weight, group in zip(weights, groups, strict=True)]


def _find_limit(totals: Sequence[float], rest: float, max_share: float) -> float:
    """The most that one group may weigh: max_share of what all weigh once those above it are cut down to it.

    totals: of the groups, the largest first; rest: what is never cut.
    """
    uncut = rest + sum(totals)
    for num_cut, total in enumerate((*totals, 0.0)):
        if num_cut * max_share >= 1 or uncut <= 0:
            break
        limit = max_share * uncut / (1 - num_cut * max_share)  # limit = max_share (num_cut * limit + uncut)
        if total <= limit:
            return limit
        uncut -= total
    return min(totals, default=0.0)


def _find_level(totals: Sequence[float], least: float) -> float:
    """What the groups above it are cut down to where all together weigh `least`; 0 for nothing. totals: the largest first."""
    uncut = sum(totals)
    for num_cut, total in enumerate(totals, 1):
        uncut -= total
        level = (least - uncut) / num_cut  # least = num_cut * level + uncut
        if level >= (totals[num_cut] if num_cut < len(totals) else 0.0):
            return level
    return 0.0


def weigh_rows(
    rows: Sequence[WeightedRow],
    *,
    reliability: Mapping[str, float],
    half_life_s: float,
    max_user_share: float = 0.1,
    max_app_share: float = 0.5,
) -> list[float]:
    """Weights of an epoch's rows, mean 1 (all 0 if none counts); users without a reliability have 1.

    half_life_s: a row that much older than the newest counts half; 0 means that age does not count.
    """
    newest = min((max(0.0, row.age_s) for row in rows), default=0.0)
    weights = [
        row.weight
        * reliability.get(row.user, 1.0)
        * (0.5 ** (max(0.0, row.age_s - newest) / half_life_s) if half_life_s else 1.0)
        for row in rows
    ]
    least = sum(weights) / MAX_RAISE
    weights = cap_shares(weights, [row.user for row in rows], max_user_share, least)
    weights = cap_shares(weights, [row.app for row in rows], max_app_share, least)
    total = sum(weights)
    return [weight * len(rows) / total for weight in weights] if total > 0 else weights

"""Ratings made comparable: each against what its person, or its slice, usually gives. Pure."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence

USUAL_PRIOR = 2.0


def compare_with_usual(ratings: Sequence[tuple[Hashable, float]]) -> list[float]:
    """.5 + rating - what its group usually gives, within 0 to 1: who always gives five stars says little by them.

    ratings: (group, rating of 0 to 1). What a group usually gives is (sum of its ratings + 2 mean of all) / (their number + 2).
    """
    of_group: dict[Hashable, list[float]] = defaultdict(list)
    for group, value in ratings:
        of_group[group].append(value)
    overall = math.fsum(value for _, value in ratings) / max(1, len(ratings))
    usual = {
        group: (math.fsum(values) + USUAL_PRIOR * overall) / (len(values) + USUAL_PRIOR)
        for group, values in of_group.items()
    }
    return [min(1.0, max(0.0, 0.5 + value - usual[group])) for group, value in ratings]

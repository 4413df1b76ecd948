"""Shares with intervals for observations that hang together, such as twelve ways of asking for one fact.

Pure. Wilson's score interval on an effective number of observations, so it never leaves 0 to 1.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

NORMAL_QUANTILE_975 = 1.959963984540054
RELATIVE_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Share:
    """A share of `n` trials in `clusters` clusters with its 95% interval; value, low and high between 0 and 1."""

    value: float
    low: float
    high: float
    n: int
    clusters: int


def wilson_interval(share: float, n: float, z: float = NORMAL_QUANTILE_975) -> tuple[float, float]:
    """Return Wilson's score interval (Wilson 1927, eq. 4) of a share in n trials.

    Raises ValueError if there is no trial, or the share is none.
    """
    if n <= 0 or not 0 <= share <= 1:
        raise ValueError(f"{share} of {n} trials is no share")
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def measure_share(scores: Sequence[float], clusters: Sequence[str]) -> Share:
    """Return the mean of scores from 0 to 1 with an interval for scores that are alike within a cluster.

    The variance is Liang and Zeger's (1986) with the factor G / (G - 1); it gives the number of independent trials that
    are worth as much (Kish's effective sample size, at most n), and Wilson's interval of those uses Student's t of G - 1
    degrees of freedom. Where all scores are 0, or all 1, every cluster counts as one trial. Raises ValueError for none.
    """
    sums: dict[str, list[float]] = defaultdict(list)
    for score, cluster in zip(scores, clusters, strict=True):
        sums[cluster].append(score)
    n, num_clusters = len(scores), len(sums)
    if not n:
        raise ValueError("a share of no trials")
    share = sum(scores) / n
    worth: float = num_clusters
    if num_clusters > 1 and 0 < share < 1:
        residuals = sum((sum(part) - share * len(part)) ** 2 for part in sums.values())
        variance = num_clusters / (num_clusters - 1) * residuals / n**2
        worth = min(n, share * (1 - share) / variance) if variance > 0 else n
    low, high = wilson_interval(share, worth, t_quantile_975(num_clusters - 1))
    return Share(share, low, high, n, num_clusters)


def t_quantile_975(freedom: int) -> float:
    """The 97.5% quantile of Student's t; from 5 degrees on within 0.01 (Abramowitz and Stegun 26.7.5).

    Fewer are taken for 5: their intervals would span nearly everything, and no share here rests on so few clusters.
    """
    z, v = NORMAL_QUANTILE_975, max(5, freedom)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / v + second / v**2 + third / v**3


def score_pair(answer: float, reference: float) -> float:
    """Return 1 for the higher utility, 0 for the lower, one half where they are equal."""
    if math.isclose(answer, reference, rel_tol=RELATIVE_TOLERANCE, abs_tol=RELATIVE_TOLERANCE):
        return 0.5
    return 1.0 if answer > reference else 0.0

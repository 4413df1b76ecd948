"""Intervals and evidence: Wilson, means of clustered values, bootstrap, differences over draws and prompts, e-values.

Pure numbers, no tensors. Values of one prompt are not independent of each other: whatever is asked several times is
clustered by its prompt. Does not decide anything: judge/gate does.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np


@dataclass(frozen=True)
class Interval:
    """A value with the bounds around it; n counts what was measured."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error and degrees of freedom; n counts independent clusters.

    Bounds are one-sided: at a share alpha of measurements of a true mean, `lower(alpha)` lies above it.
    """

    mean: float
    std_error: float
    freedom: float
    n: int

    def lower(self, alpha: float) -> float:
        return self.mean - student_quantile(1 - alpha, self.freedom) * self.std_error if self.std_error else self.mean

    def upper(self, alpha: float) -> float:
        return self.mean + student_quantile(1 - alpha, self.freedom) * self.std_error if self.std_error else self.mean

    def interval(self, confidence: float = 0.95) -> Interval:
        """The two-sided interval."""
        alpha = (1 - confidence) / 2
        return Interval(self.mean, self.lower(alpha), self.upper(alpha), self.n)


def student_quantile(share: float, freedom: float) -> float:
    """Quantile of Student's t: exact for 1 and 2 degrees of freedom, else the expansion of Abramowitz and Stegun 26.7.5.

    freedom: below 1 counts as 1 and below 3 as a whole number; infinite is the normal distribution.
    """
    if not 0 < share < 1:
        raise ValueError(f"{share} is no share between 0 and 1")
    if freedom < 2:
        return math.tan(math.pi * (share - 0.5))
    if freedom < 3:
        return 2 * (share - 0.5) * math.sqrt(2 / (4 * share * (1 - share)))
    z = NormalDist().inv_cdf(share)
    if math.isinf(freedom):
        return z
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / freedom**power for power, term in enumerate(terms, 1))


def wilson_interval(num_wins: float, n: int, confidence: float = 0.95) -> Interval:
    """The share of wins with Wilson's score interval (Wilson 1927, eq. 4); halves count as halves of a win.

    Raises ValueError if there is no trial, or more wins than trials.
    """
    if n <= 0 or not 0 <= num_wins <= n:
        raise ValueError(f"{num_wins} wins in {n} trials is no share")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = num_wins / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(share, max(0.0, centre - half_width), min(1.0, centre + half_width), n)


def estimate_mean(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of all values, its error clustered (CR1): G/(G-1) sum over clusters of (sum of deviations)^2 / n^2.

    clusters: (values,), which cluster each value belongs to; None: each its own. One cluster alone has an infinite error.
    Raises ValueError where there is no value.
    """
    if not values:
        raise ValueError("there is nothing to take the mean of")
    mean = math.fsum(values) / len(values)
    deviations: dict[Hashable, float] = {}
    for value, cluster in zip(values, clusters or range(len(values)), strict=True):
        deviations[cluster] = deviations.get(cluster, 0.0) + value - mean
    number = len(deviations)
    if number < 2:
        return Estimate(mean, math.inf, 1, number)
    variance = number / (number - 1) * math.fsum(each**2 for each in deviations.values()) / len(values) ** 2
    return Estimate(mean, math.sqrt(variance), number - 1, number)


def estimate_over_draws(differences: Sequence[Sequence[float]], clusters: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of differences that each of K draws of a model sees in its own way, unsure over draws *and* prompts.

    differences: (values, K), taken within a draw before anything else. The variance is the mean sampling variance within
    a draw plus the variance of the draws' means (law of total variance); degrees of freedom after Satterthwaite (1946).
    """
    columns = list(zip(*differences, strict=True))
    if not columns:
        raise ValueError("there is nothing to take the mean of")
    within = [estimate_mean(column, clusters) for column in columns]
    if len(columns) == 1:
        return within[0]
    between = estimate_mean([each.mean for each in within])
    over_prompts = math.fsum(each.std_error**2 for each in within) / len(within)
    over_draws = between.std_error**2 * len(columns)  # one draw is the truth, not their mean
    number = within[0].n
    total = over_prompts + over_draws
    if not math.isfinite(total) or total == 0:
        return Estimate(between.mean, math.sqrt(total), max(1, number - 1), number)
    freedom = total**2 / (over_prompts**2 / max(1, number - 1) + over_draws**2 / (len(columns) - 1))
    return Estimate(between.mean, math.sqrt(total), freedom, number)


def bootstrap_interval(
    values: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    confidence: float = 0.95,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
) -> Interval:
    """The mean with the percentile interval of a bootstrap over whole clusters; the same seed gives the same bounds."""
    if not values:
        raise ValueError("there is nothing to take the mean of")
    sums: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters or range(len(values)), strict=True):
        sums.setdefault(cluster, []).append(value)
    totals = np.array([math.fsum(each) for each in sums.values()])
    counts = np.array([len(each) for each in sums.values()])
    drawn = np.random.default_rng(seed).integers(len(totals), size=(num_resamples, len(totals)))
    means = totals[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(math.fsum(values) / len(values), float(low), float(high), len(totals))


def spend_alpha(alpha: float, look: int) -> float:
    """The share of alpha that the nth look may spend: alpha 6 / (pi n)^2. All looks there will ever be spend alpha."""
    if look < 1:
        raise ValueError(f"looks are counted from 1, not from {look}")
    return alpha * 6 / (math.pi * look) ** 2


def log_evidence(correct: int, total: int) -> float:
    """Log e-value of a uniform mixture over accuracies against fair coin flips: E = 2^n B(k + 1, n - k + 1)."""
    beta = math.lgamma(correct + 1) + math.lgamma(total - correct + 1) - math.lgamma(total + 2)
    return total * math.log(2) + beta

"""When more of a learnt reward is less of what it stands for (Gao, Schulman and Hilton 2022). Pure.

d is the square root of the KL divergence to where a policy began; R(d) = d (a - b ln d) is what it truly gained, their form for
reinforcement learning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class GainCurve:
    """R(d) = d (a - b ln d)."""

    a: float
    b: float

    def predict(self, kl: float) -> float:
        """The gain at a KL divergence in nats."""
        if kl <= 0:
            return 0.0
        d = math.sqrt(kl)
        return d * (self.a - self.b * math.log(d))

    @property
    def peak_kl(self) -> float:
        """Where the gain is largest: R'(d) = a - b - b ln d = 0. Infinite for a curve that never bends down."""
        if self.b <= 0:
            return math.inf
        exponent = 2 * (self.a / self.b - 1)
        return math.exp(exponent) if exponent < 700 else math.inf


def fit_gain_curve(kls: Sequence[float], gains: Sequence[float]) -> GainCurve:
    """Least squares on R over the columns d and -d ln d. kls: nats, > 0.

    Raises ValueError for fewer than two different divergences.
    """
    columns = [(math.sqrt(kl), -math.sqrt(kl) * math.log(math.sqrt(kl))) for kl in kls if kl > 0]
    if len(columns) != len(gains) or len({column[0] for column in columns}) < 2:
        raise ValueError("the curve needs gains at two different divergences above 0")
    dd = math.fsum(x * x for x, _ in columns)
    dl = math.fsum(x * y for x, y in columns)
    ll = math.fsum(y * y for _, y in columns)
    dr = math.fsum(x * gain for (x, _), gain in zip(columns, gains, strict=True))
    lr = math.fsum(y * gain for (_, y), gain in zip(columns, gains, strict=True))
    determinant = dd * ll - dl * dl
    return GainCurve((ll * dr - dl * lr) / determinant, (dd * lr - dl * dr) / determinant)


def find_turn(kls: Sequence[float], proxy: Sequence[float], auditor: Sequence[float]) -> str:
    """A sentence where a series of checkpoints has passed the auditor's peak while the proxy rose; else "".

    One value per checkpoint, oldest first; at least three are needed.
    """
    if len(kls) < 3 or len({kl for kl in kls if kl > 0}) < 2 or min(kls) <= 0:
        return ""
    curve = fit_gain_curve(kls, auditor)
    if kls[-1] <= curve.peak_kl or proxy[-1] <= proxy[0] or auditor[-1] >= max(auditor):
        return ""
    return (
        f"over-optimised: by the auditor the gain was largest near {curve.peak_kl:.1f} nats from where it began, and the policy is at"
        f" {kls[-1]:.1f}; the reward model still rises"
    )

"""Whether a new version of the reward model may be used: not worse than the last, honest about its chances, no slice lost.

Pure. Says why not, in sentences; warnings do not stop it. A version that may not be used is not scored with: the last one is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from trainer.learn.reward.prequential import Count, Prequential
from trainer.math.intervals import student_quantile

MAX_CALIBRATION_ERROR = 0.15
SUSPECT_ACCURACY = 0.8
LEAST_CHOICES = 50  # fewer say nothing of a version or a slice


@dataclass(frozen=True)
class VersionFigures:
    """heldout, foreseen: (right, all); calibration_error: 0 to 1; slices: (right, all) of the foreseen by name."""

    foreseen: Count
    heldout: Count = (0, 0)
    calibration_error: float = 0.0
    slices: Mapping[str, Count] = field(default_factory=dict)


@dataclass(frozen=True)
class VersionVerdict:
    """failures: why the version may not be used; empty if it may."""

    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.failures


def read_figures(record: Prequential, heldout: Count = (0, 0)) -> VersionFigures:
    """The figures of a model by its record."""
    return VersionFigures(record.count, heldout, record.calibrate().ece, record.by_slice())


def is_clearly_below(new: Count, last: Count, alpha: float) -> bool:
    """Whether a share fell, one-sided at alpha: the difference with a success and a failure added to both (Agresti-Caffo 2000)."""
    (p, n), (q, m) = (((right + 1) / (total + 2), total + 2) for right, total in (new, last))
    error = math.sqrt(p * (1 - p) / n + q * (1 - q) / m)
    return p - q + student_quantile(1 - alpha, math.inf) * error < 0


def judge_version(new: VersionFigures, last: VersionFigures | None = None, alpha: float = 0.05) -> VersionVerdict:
    """Compare a version with the last one that was used, None for the first. Slices share alpha."""
    failures, warnings = [], []
    for name, now, before in _list_counts(new, last):
        if now[1] >= LEAST_CHOICES and before[1] >= LEAST_CHOICES and is_clearly_below(now, before, alpha):
            failures.append(f"{name} accuracy fell from {before[0] / before[1]:.0%} to {now[0] / now[1]:.0%}")
    if new.foreseen[1] >= 2 * LEAST_CHOICES and new.calibration_error > MAX_CALIBRATION_ERROR:
        failures.append(f"its chances are off by {new.calibration_error:.0%} on average")
    known = {
        name: (count, last.slices[name])
        for name, count in new.slices.items()
        if last is not None and name in last.slices and min(count[1], last.slices[name][1]) >= LEAST_CHOICES
    }
    for name, (now, before) in known.items():
        if is_clearly_below(now, before, alpha / len(known)):
            failures.append(f"accuracy in {name} fell from {before[0] / before[1]:.0%} to {now[0] / now[1]:.0%}")
    for name, (right, total) in (("prequential", new.foreseen), ("held-out", new.heldout)):
        if total >= LEAST_CHOICES and right / total > SUSPECT_ACCURACY:
            warnings.append(
                f"suspect leakage: {name} accuracy is {right / total:.0%}, and people agree with themselves less often than that"
            )
    return VersionVerdict(tuple(failures), tuple(warnings))


def _list_counts(new: VersionFigures, last: VersionFigures | None) -> list[tuple[str, Count, Count]]:
    if last is None:
        return []
    return [("prequential", new.foreseen, last.foreseen), ("held-out", new.heldout, last.heldout)]

"""Whether a new version of the reward model may be used: not worse than the last, honest about its chances, no slice lost.

Both are held against the same choices: how hard choices are to foresee changes with the answers that people are shown. Pure. Says
why not, in sentences; warnings do not stop it. A version that may not be used is not scored with: the last one is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from trainer.learn.reward.prequential import Count, Foreseen, Prequential
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


def compare_versions(
    new: Prequential, again: Sequence[Foreseen], heldout: Count = (0, 0), last_heldout: Count = (0, 0)
) -> Comparison:
    """Of the choices that the last version foresaw `again`, later ones than it learnt from. new: the new version's record."""
    of_last = {row.event_id: row for row in again}
    shared = [row for row in new.decisive if row.event_id in of_last]
    window = max(1, len(shared))
    now, before = Prequential(window, shared), Prequential(window, [of_last[row.event_id] for row in shared])
    return Comparison(
        VersionFigures(now.count, heldout, slices=now.by_slice()),
        VersionFigures(before.count, last_heldout, slices=before.by_slice()),
    )


def is_clearly_below(new: Count, last: Count, alpha: float) -> bool:
    """Whether a share fell, one-sided at alpha: the difference with a success and a failure added to both (Agresti-Caffo 2000)."""
    (p, n), (q, m) = (((right + 1) / (total + 2), total + 2) for right, total in (new, last))
    error = math.sqrt(p * (1 - p) / n + q * (1 - q) / m)
    return p - q + student_quantile(1 - alpha, math.inf) * error < 0


@dataclass(frozen=True)
class Comparison:
    """What a new version foresaw before it learnt from it, and the last one that was used, of the same choices."""

    new: VersionFigures
    last: VersionFigures


def judge_version(new: VersionFigures, since: Comparison | None = None, alpha: float = 0.05) -> VersionVerdict:
    """Judge a version by its figures, and beside the last one that was used; None for the first. Slices share alpha."""
    failures, warnings = [], []
    for name, now, before in _list_counts(since):
        if now[1] >= LEAST_CHOICES and before[1] >= LEAST_CHOICES and is_clearly_below(now, before, alpha):
            failures.append(f"{name} accuracy fell from {before[0] / before[1]:.0%} to {now[0] / now[1]:.0%}")
    if new.foreseen[1] >= 2 * LEAST_CHOICES and new.calibration_error > MAX_CALIBRATION_ERROR:
        failures.append(f"its chances are off by {new.calibration_error:.0%} on average")
    known = {
        name: (count, since.last.slices[name])
        for name, count in (since.new.slices if since else {}).items()
        if since and name in since.last.slices and min(count[1], since.last.slices[name][1]) >= LEAST_CHOICES
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


def _list_counts(since: Comparison | None) -> list[tuple[str, Count, Count]]:
    if since is None:
        return []
    new, last = since.new, since.last
    return [("prequential", new.foreseen, last.foreseen), ("held-out", new.heldout, last.heldout)]

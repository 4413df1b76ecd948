"""The prequential record: every choice is foreseen before it is learnt from, and the last ones say what the model is worth.

Pure (Dawid 1984). The window holds the last choices only, so that what an old model foresaw does not count for ever. Choices
between answers that a model picked have a window of their own: parts are mixed by them, and of all that is judged only whether
pairs may be labelled, which are picked, too, goes by them.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trainer.math.intervals import log_evidence
from trainer.math.weights import estimate_reliability

WINDOW = 400
Count = tuple[int, int]
"""How many were right, of how many."""


@dataclass(frozen=True)
class Foreseen:
    """One choice as it was foreseen. logit: of P(first | one was preferred), place left out; parts: what made it, by name."""

    event_id: str
    preferred: str
    logit: float
    parts: dict[str, float] = field(default_factory=dict)
    app: str = ""
    user: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    may_judge: bool = True  # its answers were picked at random

    @property
    def is_decisive(self) -> bool:
        return self.preferred in ("first", "second")

    @property
    def is_right(self) -> bool:
        """Whether the preferred answer was expected to be."""
        return (self.logit > 0) == (self.preferred == "first") and self.logit != 0


@dataclass(frozen=True)
class Calibration:
    """temperature: what logits are divided by to fit the record best; ece: expected calibration error after that, 0 to 1."""

    temperature: float
    ece: float


class Prequential:
    """The last `window` choices that may judge, oldest first, and as many that may not. num_seen counts all ever added."""

    def __init__(self, window: int = WINDOW, rows: Iterable[Foreseen] = (), num_seen: int = 0) -> None:
        self.rows: deque[Foreseen] = deque(maxlen=window)
        self.picked: deque[Foreseen] = deque(maxlen=window)
        self.num_seen = 0
        self.add(list(rows))
        self.num_seen = num_seen or len(self.rows) + len(self.picked)

    def add(self, rows: Sequence[Foreseen]) -> None:
        for row in rows:
            (self.rows if row.may_judge else self.picked).append(row)
        self.num_seen += len(rows)

    def drop(self, event_ids: Collection[str]) -> None:
        """Leave choices out, as if they had not been foreseen."""
        for window in (self.rows, self.picked):
            kept = [row for row in window if row.event_id not in event_ids]
            window.clear()
            window.extend(kept)

    @property
    def everything(self) -> list[Foreseen]:
        """Also what may not judge, which comes last."""
        return [*self.rows, *self.picked]

    @property
    def decisive(self) -> list[Foreseen]:
        """Decisive choices that may judge."""
        return [row for row in self.rows if row.is_decisive]

    @property
    def count(self) -> Count:
        """(right, all) of the window's decisive choices."""
        decisive = self.decisive
        return sum(row.is_right for row in decisive), len(decisive)

    @property
    def accuracy(self) -> float:
        """Share that was foreseen, .5 for none."""
        right, total = self.count
        return right / total if total else 0.5

    def count_part(self, name: str) -> Count:
        """(right, all) if one part alone had foreseen."""
        signs = [(row.parts.get(name, 0.0), row.preferred == "first") for row in self.decisive]
        return sum(value != 0 and (value > 0) == is_first for value, is_first in signs), len(signs)

    def by_slice(self) -> dict[str, Count]:
        """`count` for every app ("app=…") and tag ("name=value") that was seen."""
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for row in self.decisive:
            names = [f"{name}={value}" for name, value in sorted(row.tags.items())]
            for name in [f"app={row.app}", *names] if row.app else names:
                counts[name][0] += row.is_right
                counts[name][1] += 1
        return {name: (right, total) for name, (right, total) in sorted(counts.items())}

    def by_user(self) -> dict[str, Count]:
        """`count` for every user that is known: how often each chose as was expected."""
        counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for row in self.decisive:
            if row.user:
                counts[row.user][0] += row.is_right
                counts[row.user][1] += 1
        return {user: (right, total) for user, (right, total) in counts.items()}

    def calibrate(self) -> Calibration:
        return calibrate([(row.logit, row.preferred == "first") for row in self.decisive])

    def state(self) -> dict[str, Any]:
        """All of it, as JSON takes it."""
        return {"window": self.rows.maxlen, "num_seen": self.num_seen, "rows": [asdict(row) for row in self.everything]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Prequential:
        """Raises KeyError and TypeError for what is no state."""
        return cls(int(state["window"]), [Foreseen(**row) for row in state["rows"]], int(state["num_seen"]))


def find_reliability(record: Prequential) -> dict[str, float]:
    """How much each person's choices tell, from how often the reward model foresaw them."""
    return {user: estimate_reliability(right, total) for user, (right, total) in record.by_user().items()}


def something_to_learn(
    record: Prequential, heldout_correct: int, heldout_total: int, least_evidence: float = 100.0
) -> tuple[bool, str]:
    """Whether choices can be foreseen better than by a coin, and a sentence that says so.

    An e-value of 100 comes in at most one of 100 worlds where choices are noise (Ville's inequality), for each of the two counts; it
    holds for one window, and looking at many windows is looking often. least_evidence 0: it is said, and not waited for.
    """
    findings = []
    for (right, total), name in ((record.count, "new"), ((heldout_correct, heldout_total), "held-out")):
        if total == 0:
            continue
        findings.append(f"{right} of {total} {name} choices foreseen ({right / total:.0%})")
        if 2 * right > total and log_evidence(right, total) >= math.log(max(1.0, least_evidence)):
            return True, f"{findings[-1]}, better than chance"
    if not least_evidence:
        return True, ", ".join(findings) or "no choice was foreseen yet"
    if not findings:
        return False, "nothing to learn: no decisive choice to judge by yet"
    return False, f"nothing to learn: {', '.join(findings)}, not clearly better than chance"


def calibrate(rows: Sequence[tuple[float, bool]], num_bins: int = 10) -> Calibration:
    """rows: (logit, whether it came true). Bins hold equally many rows, at least 10 each, by how sure the model was."""
    if not rows:
        return Calibration(1.0, 0.0)
    sure = [(abs(logit), came == (logit > 0)) for logit, came in rows]
    temperature = min((2 ** (step / 8) for step in range(-24, 33)), key=lambda t: _measure_loss(sure, t))
    ordered = sorted(sure, key=lambda row: row[0])  # not by what came: equal chances would be told apart by it
    num_bins = max(1, min(num_bins, len(ordered) // 10))
    edges = [round(i * len(ordered) / num_bins) for i in range(num_bins + 1)]
    error = 0.0
    for start, end in itertools.pairwise(edges):
        held = ordered[start:end]
        said = sum(1 / (1 + math.exp(-logit / temperature)) for logit, _ in held)
        error += abs(said - sum(came for _, came in held))
    return Calibration(temperature, error / len(ordered))


def _measure_loss(rows: Sequence[tuple[float, bool]], temperature: float) -> float:
    return math.fsum(
        math.log1p(math.exp(min(700.0, -(logit if came else -logit) / temperature))) for logit, came in rows
    )

"""What the trainer is doing, and why it does not train, as /status says it.

The learner and the consumer write the board, server.py reads it; the view is a copy made under a lock.
"""

from __future__ import annotations

import copy
import threading
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class StyleView:
    """What one feature of an answer's text (text/style.FEATURES) is worth to people: a weight of the score, in nats.

    sd: how unsure it is; above 0 it is liked.
    """

    name: str
    weight: float
    sd: float


@dataclass
class RewardView:
    """The reward model. version is the newest, version_in_use the one rounds use; refused: why that is an older one.

    accuracy_heldout: on held-out choices, measured before rounds. prequential_accuracy: of the last choices, each foreseen
    before it was learnt from, at every update; num_foreseen: how many those are. None before the first of each. style: what
    the newest version has learnt of each feature of an answer's text.
    """

    version: int = 0
    accuracy_heldout: float | None = None
    num_heldout: int = 0
    prequential_accuracy: float | None = None
    num_foreseen: int = 0
    version_in_use: int = 0
    refused: str = ""
    style: tuple[StyleView, ...] = ()


@dataclass
class RoundView:
    """What the learner does, and always why.

    state: "idle", "waiting", "learning" (the reward model, many choices at once), "preparing", "training", "evaluating",
    "publishing", or "failing" while a step is tried again. progress: 0 to 1, of what is done in this state, or of what a
    round needs while it is "idle". seconds_left: of this state, at the pace so far; None where that is not known.
    """

    state: str = "waiting"
    number: int | None = None
    progress: float = 0.0
    reason: str = "the trainer is starting"
    seconds_left: float | None = None


@dataclass(frozen=True)
class SamplingView:
    """How fast the trainer samples beside people. cap: answers at a time, None before the first; reason: why no more or fewer.

    slowdown: how many times as long as without samples people waited for the first token, last seen; is_blind: nothing says it.
    """

    cap: int | None = None
    reason: str = ""
    slowdown: float | None = None
    is_blind: bool = False


@dataclass(frozen=True)
class LeaseView:
    """Which trainer works. state: "starting", "leading" or "standby"; holder: of the lease, "" for nobody.

    since: epoch seconds when it took the lease, None while that is not known. waits_for: what a standby waits for, in words.
    """

    state: str = "starting"
    holder: str = ""
    since: float | None = None
    waits_for: str = ""


@dataclass
class StatusView:
    """The answer of /status. lag: records in the log that are not consumed; rounds are finished ones, oldest first.

    uses: choices by what became of them, see text/pairs.explain_use. quarantined: preferences that learning could not use.
    drift: what the stable checkpoint does otherwise in traffic than when it was judged, in sentences. satisfaction: of those
    who were asked at random, by arm and slice (feedback/quality/satisfaction.Satisfaction). lease: which trainer works; a
    standby shows what that one said last. is_ready: the base is loaded.
    """

    preferences: int = 0
    decisive: int = 0
    uses: dict[str, int] = field(default_factory=dict)
    new_since_round: int = 0
    round_every: int = 0
    lag: int | None = None
    consumer_error: str = ""
    registry_error: str = ""
    dead_letters: int = 0
    quarantined: int = 0
    checkpoint: str | None = None
    reward: RewardView = field(default_factory=RewardView)
    round: RoundView = field(default_factory=RoundView)
    sampling: SamplingView = field(default_factory=SamplingView)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    drift: list[str] = field(default_factory=list)
    satisfaction: list[dict[str, Any]] = field(default_factory=list)
    lease: LeaseView = field(default_factory=LeaseView)
    is_ready: bool = False


class Board:
    """The one StatusView, guarded."""

    def __init__(self) -> None:
        self._view = StatusView()
        self._lock = threading.Lock()

    def update(self, **values: Any) -> None:
        with self._lock:
            for name, value in values.items():
                assert hasattr(self._view, name), name
                setattr(self._view, name, value)

    def show_round(self, state: str, reason: str, *, progress: float = 0.0, seconds_left: float | None = None) -> None:
        """Say what the learner does and why. reason: never empty."""
        assert reason
        with self._lock:
            self._view.round = replace(
                self._view.round, state=state, reason=reason, progress=progress, seconds_left=seconds_left
            )

    def begin_round(self, number: int, reason: str) -> None:
        """Say that a round begins."""
        with self._lock:
            self._view.round = RoundView("preparing", number, 0.0, reason)

    def read(self) -> StatusView:
        with self._lock:
            return copy.deepcopy(self._view)

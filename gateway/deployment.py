"""What is being served right now: the view (which checkpoint, with which weight) and what is in flight on it.

Lives on the event loop; nothing here is shared between threads except by replacing the frozen view. A view of a lower
or equal generation is ignored. Does not decide anything: the rollout controller applies views, routing reads them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.rollout.observations import Observations


@dataclass(frozen=True)
class ServingView:
    """Which checkpoints serve, and how users are split; weights are 0 to 1, `rollout` None while nothing is judged."""

    generation: int
    stable: str | None
    canary: str | None = None
    weight: float = 0.0
    duel_share: float = 0.0
    salt: bytes = b""
    rollout: str | None = None


@dataclass
class Counters:
    """Totals since start, as the operator's status shows them."""

    requests: int = 0
    num_in_flight: int = 0
    failed_requests: int = 0
    comparisons: int = 0
    choices: int = 0
    not_paired: Counter[str] = field(default_factory=Counter)  # reason -> times two answers were due but one was given


@dataclass
class EngineState:
    """One engine as last seen: `adapters` are the names it answers to."""

    url: str
    up: bool = False
    adapters: frozenset[str] = frozenset()
    proven: frozenset[str] = frozenset()  # adapters whose probe has passed since the engine started
    num_in_flight: int = 0


class Deployment:
    """The view, the engines and the in-flight counts."""

    def __init__(self, engines: Iterable[str], observations: Observations | None = None) -> None:
        self.view = ServingView(generation=0, stable=None)
        self.counters = Counters()
        self.observations = observations
        self.engines = {url: EngineState(url) for url in engines}
        self.first_answer_at: dict[str, float] = {}  # checkpoint -> when its first answer came, since start
        self._in_flight: Counter[str] = Counter()

    def apply(self, view: ServingView) -> bool:
        """Take a view of a higher generation; says whether it was taken."""
        if view.generation <= self.view.generation:
            return False
        self.view = view
        return True

    def in_flight(self, checkpoint: str) -> int:
        """How many requests are being answered by the checkpoint."""
        return self._in_flight[checkpoint]

    def pick_engine(self, checkpoint: str) -> EngineState:
        """The one with the fewest requests in flight, among engines that hold the checkpoint if any does."""
        states = self.engines.values()
        holding = [state for state in states if checkpoint in state.proven and state.up]
        return min(holding or list(states), key=lambda state: state.num_in_flight)

    def note_answer(self, checkpoint: str) -> None:
        """Keep when a checkpoint answered for the first time."""
        self.first_answer_at.setdefault(checkpoint, time.time())

    def begin(self, checkpoint: str, engine: EngineState) -> None:
        """One more request is in flight for the checkpoint, on the engine."""
        self._in_flight[checkpoint] += 1
        engine.num_in_flight += 1

    def end(self, checkpoint: str, engine: EngineState) -> None:
        """One that had begun is over."""
        self._in_flight[checkpoint] -= 1
        if not self._in_flight[checkpoint]:
            del self._in_flight[checkpoint]
        engine.num_in_flight -= 1

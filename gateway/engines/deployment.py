"""What is being served right now: the view (which checkpoint, with which weight), and what is in flight on it.

Lives on the event loop; nothing here is shared between threads except by replacing the frozen view. A view of a lower
or equal generation is ignored. Does not decide anything: the rollout controller applies views, routing reads them,
engines.py chooses the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from gateway.engines.engine import REGISTERED, Breaker, BreakerLimits, EngineState, choose_engine
from gateway.errors import EngineUnavailable
from gateway.sections.rollout import Kl

Arm = Literal["stable", "canary"]


@dataclass(frozen=True)
class ServingView:
    """Which checkpoints serve, and how users are split; weights are 0 to 1, `rollout` None while nothing is judged.

    observed: under which name first requests are kept. is_baking: the rollout's canary is stable here, and its stable the canary.
    shadow_share: of requests that stable answers, those that the canary is asked too, for nobody; max_shadows: at once, by a gateway.
    kl: how answers of duels are measured; None where none is.
    """

    generation: int
    stable: str | None
    canary: str | None = None
    weight: float = 0.0
    duel_share: float = 0.0
    salt: bytes = b""
    rollout: str | None = None
    observed: str | None = None
    is_baking: bool = False
    shadow_share: float = 0.0
    max_shadows: int = 0
    kl: Kl | None = None

    def trial_arm(self, arm: Arm) -> Arm:
        """What an arm is in the rollout."""
        if self.is_baking:
            return "stable" if arm == "canary" else "canary"
        return arm

    @property
    def trial_weight(self) -> float:
        """The share of users whom the rollout's canary serves."""
        return 1 - self.weight if self.is_baking else self.weight


@dataclass
class Counters:
    """Totals since start, as the operator's status shows them."""

    requests: int = 0
    num_in_flight: int = 0
    failed_requests: int = 0
    comparisons: int = 0
    choices: int = 0
    not_paired: Counter[str] = field(default_factory=Counter)  # reason -> times two answers were due but one was given


class Deployment:
    """The view, the engines and the in-flight counts. is_open: engines come and go, so that one is never the only one for sure.

    have_changed is set whenever an engine came or was withdrawn.
    """

    def __init__(
        self,
        engines: Iterable[str],
        limits: BreakerLimits = BreakerLimits(),  # noqa: B008 (frozen)
        *,
        is_open: bool = False,
    ) -> None:
        self.view = ServingView(generation=0, stable=None)
        self.counters = Counters()
        self._limits = limits
        self.engines = {
            url: EngineState(url, Breaker(limits)) for url in engines
        }  # with what is withdrawn and not idle
        self.first_answer_at: dict[str, float] = {}  # checkpoint -> when its first answer came, since start
        self.have_changed = asyncio.Event()
        self.is_single = len(self.engines) == 1 and not is_open  # there is nothing to choose, and never was
        self._states = tuple(self.engines.values())
        self._withdrawn: list[EngineState] = []  # until idle, also those whose URL was registered again
        self._in_flight: dict[str, int] = {}

    def apply(self, view: ServingView) -> bool:
        """Take a view of a higher generation; says whether it was taken."""
        if view.generation <= self.view.generation:
            return False
        self.view = view
        return True

    def fall_back(self) -> bool:
        """Serve stable alone, because nobody knows what the tables say; says whether anything changed.

        The generation falls by one, so that the same view can be applied again.
        """
        if self.view.canary is None:
            return False
        self.view = ServingView(generation=self.view.generation - 1, stable=self.view.stable)
        return True

    # -- in flight

    def in_flight(self, checkpoint: str) -> int:
        """How many requests are being answered by the checkpoint."""
        return self._in_flight.get(checkpoint, 0)

    def all_in_flight(self) -> dict[str, int]:
        """The counts above nought, by checkpoint."""
        return dict(self._in_flight)

    def hold(self, checkpoint: str) -> None:
        """Keep the checkpoint loaded for one request, from the very step in which it was chosen until `release`.

        An await between the choice and this, or a pause between attempts that is not held, could lose the checkpoint.
        """
        self._in_flight[checkpoint] = self._in_flight.get(checkpoint, 0) + 1

    def release(self, checkpoint: str) -> None:
        """The end of a `hold`."""
        left = self._in_flight[checkpoint] - 1
        if left:
            self._in_flight[checkpoint] = left
        else:
            del self._in_flight[checkpoint]

    def begin(self, checkpoint: str, engine: EngineState) -> None:
        """Count one request in flight for the checkpoint and the engine, until `end`."""
        self.hold(checkpoint)
        engine.begin()

    def end(self, checkpoint: str, engine: EngineState) -> None:
        """The end of a `begin`."""
        self.release(checkpoint)
        engine.end()

    # -- engines

    def pick_engine(self, checkpoint: str, conversation: str = "") -> EngineState:
        """The engine to ask: one that is usable and has proven the checkpoint, as `choose_engine` says.

        Where no usable engine holds it, the likeliest to answer of those that may hold it: whoever asks tries again for a
        while. Raises EngineUnavailable if there is none.
        """
        if self.is_single:
            return self._states[0]
        usable = [s for s in self._states if s.up and s.breaker.phase == "closed" and checkpoint in s.proven]
        if usable:
            return choose_engine(usable, conversation)
        able = [s for s in self._states if s.checkpoint == checkpoint] or [s for s in self._states if not s.checkpoint]
        if not able:
            raise EngineUnavailable(f"no engine holds {checkpoint}")
        return min(able, key=lambda state: (not state.up, not state.is_usable, state.num_in_flight))

    @property
    def states(self) -> tuple[EngineState, ...]:
        """The engines that may be asked."""
        return self._states

    @property
    def watched(self) -> tuple[EngineState, ...]:
        """The engines that may be asked, and those that were withdrawn and have requests in flight."""
        return (*self._states, *(state for state in self._withdrawn if state.num_in_flight))

    def add_engine(self, url: str, checkpoint: str | None = None, source: str = REGISTERED) -> EngineState:
        """One more engine, for adapters or with a whole model. Requests of one that was withdrawn from there end as they are."""
        state = EngineState(url, Breaker(self._limits), checkpoint, source)
        self.engines = {**self.engines, url: state}
        self._states = (*self._states, state)
        self.is_single = False
        self.have_changed.set()
        return state

    def note_progress(self, url: str, now: float) -> None:
        """Bytes of an answer came from the engine; of a complete one, it may have been withdrawn and forgotten since."""
        state = self.engines.get(url)
        if state is not None:
            state.note_progress(now)

    def withdraw_engine(self, state: EngineState) -> None:
        """Ask the engine no more; it is known until its last request has ended."""
        state.withdraw()
        self._withdrawn.append(state)
        self.have_changed.set()
        self._states = tuple(other for other in self._states if other is not state)

    def forget_withdrawn(self) -> list[str]:
        """Drop the engines that were withdrawn and have nothing left in flight; the URLs that nothing uses any more."""
        self._withdrawn = [state for state in self._withdrawn if state.num_in_flight]
        busy = {state.url for state in self._withdrawn}
        gone = [url for url, state in self.engines.items() if state.is_withdrawn and url not in busy]
        if gone:
            self.engines = {url: state for url, state in self.engines.items() if url not in gone}
        return gone

    def note_answer(self, checkpoint: str) -> None:
        """Keep when a checkpoint answered for the first time."""
        if checkpoint not in self.first_answer_at:
            self.first_answer_at[checkpoint] = time.time()

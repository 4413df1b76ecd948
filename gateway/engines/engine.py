"""One engine as the gateway sees it: what it holds, what is in flight on it, whether it may be used; and the choice
among several.

The breaker and the choice are pure; `now` is the monotonic clock in seconds, as loop.time() gives it. Nothing here talks
to an engine: the hot path and the swap say what they saw.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from gateway.sections.serving import GatewaySection

LOAD_FACTOR = (
    1.5  # a conversation stays with its engine while that has at most LOAD_FACTOR * least + LOAD_SLACK in flight
)
LOAD_SLACK = 4
SETTINGS, REGISTERED = "settings", "registered"  # sources of engines, beside the names that are looked up
_CERTAIN_AFTER_S = 10.0
_MASK = (1 << 64) - 1

BreakerPhase = Literal["closed", "open", "half-open"]
BREAKER_PHASES: tuple[BreakerPhase, ...] = ("closed", "open", "half-open")


@dataclass(frozen=True)
class BreakerLimits:
    """How many failures in a row open a breaker, and how long it stays open: doubled by every failed trial."""

    max_failures: int = 5
    first_backoff_s: float = 1.0
    max_backoff_s: float = 30.0

    @classmethod
    def from_settings(cls, section: GatewaySection) -> BreakerLimits:
        """The breaker's share of the settings."""
        return cls(section.breaker_failures, section.breaker_backoff_s, section.breaker_max_backoff_s)


@dataclass(slots=True)
class Breaker:
    """Closed until too many failures in a row; then open; after a back-off one trial decides.

    Only the trial closes it again: answers to requests that were sent before it opened say nothing of the engine now.
    """

    limits: BreakerLimits = BreakerLimits()
    phase: BreakerPhase = "closed"
    num_failures: int = 0
    retry_at: float = 0.0
    backoff_s: float = 0.0

    def note_success(self) -> None:
        """A request was answered. Says nothing unless the breaker is closed."""
        if self.num_failures and self.phase == "closed":
            self.num_failures = 0

    def note_failure(self, now: float) -> None:
        """A connection failed, an answer was a 5xx or did not come in time. Says nothing unless the breaker is closed."""
        if self.phase == "closed":
            self.num_failures += 1
            if self.num_failures >= self.limits.max_failures:
                self.trip(now)

    def trip(self, now: float) -> None:
        """Open, whatever was counted; twice as long as the last time if no trial has passed since."""
        if self.phase == "open":
            return
        limits = self.limits
        self.backoff_s = min(2 * self.backoff_s, limits.max_backoff_s) if self.backoff_s else limits.first_backoff_s
        self.phase, self.retry_at = "open", now + self.backoff_s

    def begin_trial(self, now: float) -> bool:
        """Whether a trial is due; if so it has begun, and no other does until `end_trial`."""
        if self.phase != "open" or now < self.retry_at:
            return False
        self.phase = "half-open"
        return True

    def end_trial(self, now: float, *, has_passed: bool) -> None:
        """Close and forget, or open for longer."""
        if has_passed:
            self.phase, self.num_failures, self.backoff_s = "closed", 0, 0.0
        else:
            self.trip(now)


@dataclass(slots=True, eq=False)
class EngineState:
    """One engine. `adapters`: the names it answers to; `proven`: those whose probe has passed since it started.

    checkpoint: the whole model it holds, None if it holds adapters of one base. started_at, num_tokens: what its metrics
    say, None where they say nothing. num_paused: answers in flight that their readers hold back. on_hang is called when
    the engine is taken out for a hang, so that requests without a first byte can be asked elsewhere. is_withdrawn: never
    to be asked again. refuses_token_ids: it does not know `return_token_ids`. source: who named it, `settings`, `registered` or the
    URL whose name was looked up.
    """

    url: str
    breaker: Breaker = field(default_factory=Breaker)
    checkpoint: str | None = None
    source: str = SETTINGS
    is_withdrawn: bool = False
    refuses_token_ids: bool = False
    up: bool = False
    is_hung: bool = False
    adapters: frozenset[str] = frozenset()
    proven: frozenset[str] = frozenset()
    failed_loads: dict[str, float] = field(default_factory=dict)  # checkpoint -> when its load failed first
    num_in_flight: int = 0
    num_paused: int = 0
    last_progress_at: float = 0.0
    started_at: float | None = None
    num_tokens: float | None = None
    on_hang: Callable[[], None] = lambda: None
    affinity: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)  # one load or unload at a time
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # look at it now

    def __post_init__(self) -> None:
        self.affinity = int.from_bytes(hashlib.blake2b(self.url.encode(), digest_size=8).digest()) | 1

    @property
    def address(self) -> str:
        """Host and port, for labels."""
        return self.url.partition("://")[2].rstrip("/") or self.url

    @property
    def is_usable(self) -> bool:
        """Whether requests may be sent to it while there are others."""
        return self.up and self.breaker.phase == "closed"

    def may_hold(self, checkpoint: str, *, is_full: bool) -> bool:
        """Whether it is an engine for this checkpoint: of whole weights, for its own; else for any adapter."""
        return self.checkpoint == checkpoint if is_full else self.checkpoint is None

    def withdraw(self) -> None:
        """Send it nothing more; what is in flight ends."""
        self.is_withdrawn, self.proven = True, frozenset()

    # -- what the hot path saw

    def note_progress(self, now: float) -> None:
        """Bytes of an answer came."""
        self.last_progress_at = now

    def note_success(self, now: float) -> None:
        """A whole answer came, or the first bytes of a stream."""
        self.last_progress_at = now
        self.breaker.note_success()

    def note_failure(self, now: float, *, is_lost: bool = False) -> None:
        """A 5xx or a time-out. is_lost: the connection was refused or broke, so it is out until looked at again."""
        self.breaker.note_failure(now)
        if is_lost:
            self.up = False

    def note_missing(self, checkpoint: str) -> None:
        """A 404 for a checkpoint it should hold: it has forgotten it."""
        self.proven -= {checkpoint}

    # -- what the swap saw

    def record_inspection(
        self, now: float, names: frozenset[str], started_at: float | None, num_tokens: float | None
    ) -> None:
        """It answered: these are the adapters it lists, and what its metrics say.

        One that started anew has proven nothing, even if someone loaded the adapters again already. Where start times
        are not known, one that was down counts as started anew.
        """
        is_known = started_at is not None and self.started_at is not None
        has_restarted = started_at != self.started_at if is_known else not self.up
        if has_restarted or started_at is not None:
            self.started_at = started_at
        if has_restarted:
            self.failed_loads = {}
        if has_restarted or (num_tokens is not None and num_tokens != self.num_tokens):
            self.last_progress_at, self.num_tokens = now, num_tokens
        self.up, self.adapters = True, names
        self.proven = frozenset() if has_restarted else self.proven & names

    def is_failure_certain(self, checkpoint: str, now: float) -> bool:
        """The engine answered 5xx to a load: whether that is said of the checkpoint, and not by an engine that is dying.

        One that dies is gone, or has started anew, before it has failed so for _CERTAIN_AFTER_S.
        """
        return now - self.failed_loads.setdefault(checkpoint, now) >= _CERTAIN_AFTER_S

    def is_silent(self, now: float, hang_s: float) -> bool:
        """Whether answers are waited for and neither bytes nor tokens came for hang_s."""
        return self.num_in_flight > self.num_paused and now - self.last_progress_at >= hang_s

    def mark_hung(self, now: float) -> None:
        """It hangs: out until a trial has passed."""
        self.is_hung = True
        self.breaker.trip(now)
        self.on_hang()

    def begin_trial(self, now: float) -> bool:
        """Whether a trial of an engine that is out is due; it must then prove every adapter again."""
        if not self.breaker.begin_trial(now):
            return False
        self.proven = frozenset()
        return True

    def end_trial(self, now: float, *, has_passed: bool) -> None:
        """Back in, or out for longer."""
        self.breaker.end_trial(now, has_passed=has_passed)
        if has_passed:
            self.is_hung = False
            self.last_progress_at = now

    # -- in flight

    def begin(self) -> None:
        """One more request is sent to it."""
        self._await_progress()
        self.num_in_flight += 1

    def end(self) -> None:
        """One request less."""
        self.num_in_flight -= 1

    def note_paused(self, is_paused: bool) -> None:
        """Nothing more is read of one of its answers for now, which makes it silent whatever it does; or again."""
        if is_paused:
            self.num_paused += 1
        else:
            self._await_progress()
            self.num_paused -= 1

    def _await_progress(self) -> None:
        """One more answer is waited for: silence counts from the first of them."""
        if self.num_in_flight == self.num_paused:
            self.last_progress_at = time.monotonic()


def choose_engine(engines: Sequence[EngineState], conversation: str = "") -> EngineState:
    """The engine for a conversation, so that its prefix cache hits; without one, the engine with least in flight.

    Rendezvous hashing (Thaler and Ravishankar, 1998): an engine that comes or goes moves only its own conversations, and
    all gateways agree. Bounded load (Mirrokni et al., 1608.01350): of the engines in the conversation's order, the first
    with at most LOAD_FACTOR * least + LOAD_SLACK in flight. There must be an engine.
    """
    if not conversation:
        return min(engines, key=attrgetter("num_in_flight"))
    key = zlib.crc32(conversation.encode())
    best, most, least = engines[0], -1, engines[0].num_in_flight
    for engine in engines:
        weight = key * engine.affinity & _MASK
        if weight > most:
            best, most = engine, weight
        if engine.num_in_flight < least:
            least = engine.num_in_flight
    bound = LOAD_FACTOR * least + LOAD_SLACK
    if best.num_in_flight <= bound:
        return best
    return choose_engine([engine for engine in engines if engine.num_in_flight <= bound], conversation)

"""How many samples may be under way beside people's requests. Pure.

A congestion window (AIMD, Chiu and Jain 1989): one more while people wait as long for the first token as without samples,
half as many once they wait clearly longer. Without a word of how long people wait it stays low, and says so. Says nothing
of how that is measured (first_tokens.py).
"""

from __future__ import annotations

from dataclasses import dataclass

QUANTILE = 0.9  # of people's waits: what is held against the same of idle time
ENOUGH = 8  # waits without which a window says nothing
MOST_SILENT = 60  # answers in a window after which too few waits mean that nobody will say
ENOUGH_IDLE = 20  # waits without which it is not known what people wait without samples
SHORTEST_S = 1e-3  # an idle wait below this is taken as this
MOST_IDLE = 1000  # waits of idle time that count; older ones fade


@dataclass(frozen=True)
class Waits:
    """People's waits for the first token since the last look, in buckets.

    edges: upper bounds in seconds, rising, the last infinite; counts: waits in each bucket. num_requests: people's answers of
    any kind in that time, of which some are not streamed and have no first token; num_open: those under way now.
    """

    edges: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    num_requests: float = 0.0
    num_open: float = 0.0

    @property
    def total(self) -> float:
        return sum(self.counts)

    def minus(self, earlier: Waits) -> Waits:
        """What came since; all of it if the counters began anew, nothing if others are read now."""
        if self.edges != earlier.edges:
            return Waits(self.edges, (0.0,) * len(self.edges), 0.0, self.num_open)
        if self.total < earlier.total or self.num_requests < earlier.num_requests:
            return self
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return Waits(self.edges, counts, self.num_requests - earlier.num_requests, self.num_open)

    def plus(self, other: Waits) -> Waits:
        """Both together, the buckets being the same; else the other alone."""
        if self.edges != other.edges:
            return other
        counts = tuple(a + b for a, b in zip(self.counts, other.counts, strict=True))
        return Waits(self.edges, counts, self.num_requests + other.num_requests, other.num_open)

    def fade(self, most: float) -> Waits:
        """Scaled down to `most` waits if there are more."""
        scale = min(1.0, most / max(self.total, 1.0))
        return Waits(self.edges, tuple(count * scale for count in self.counts), self.num_requests * scale)

    def quantile(self, share: float) -> float:
        """Seconds that this share of the waits does not exceed, straight within its bucket; 0 without waits."""
        below, left, rank = 0.0, 0.0, share * self.total
        for edge, count in zip(self.edges, self.counts, strict=True):
            if count and below + count >= rank:
                return left if edge == float("inf") else left + (edge - left) * (rank - below) / count
            below, left = below + count, edge
        return 0.0


@dataclass(frozen=True)
class Limits:
    """Answers under way: lowest and highest of the cap, and the highest while nobody says how long people wait.

    slowdown: how many times their idle wait people may wait.
    """

    lowest: int
    highest: int
    blind: int
    slowdown: float


@dataclass(frozen=True)
class Pace:
    """The cap, why it is what it is, and how many times their idle wait people waited last; None where that is unknown."""

    cap: int
    reason: str = ""
    slowdown: float | None = None
    is_blind: bool = False


def choose_pace(last: Pace, waits: Waits | None, idle: Waits, limits: Limits) -> Pace:
    """The next cap, from people's waits in a window. waits: None where nobody says; idle: of times without samples."""
    if waits is None:
        return _go_blind(last, limits, "nothing says how long people wait")
    if not waits.num_requests and not waits.num_open:
        return Pace(_raise(last, limits.highest), "nobody asks")
    if waits.total < ENOUGH and waits.num_requests >= MOST_SILENT:
        return _go_blind(last, limits, "too few answers are streamed to say how long people wait")
    if idle.total < ENOUGH_IDLE or idle.edges != waits.edges:
        return _go_blind(last, limits, "it is not known yet how long people wait without samples")
    if waits.total < ENOUGH:
        return last  # the window goes on
    slowdown = waits.quantile(QUANTILE) / max(idle.quantile(QUANTILE), SHORTEST_S)
    if slowdown > limits.slowdown:
        return Pace(max(limits.lowest, last.cap // 2), "people wait longer", slowdown)
    return Pace(_raise(last, limits.highest), "people wait no longer", slowdown)


def is_enough(waits: Waits | None) -> bool:
    """Whether a window has said what it can; if not, it goes on, and the cap stays."""
    if waits is None or waits.total >= ENOUGH or waits.num_requests >= MOST_SILENT:
        return True
    return not waits.num_requests and not waits.num_open


def add_idle(idle: Waits, waits: Waits) -> Waits:
    """What is known of waits without samples, with a further time of that kind; the old fades."""
    return idle.fade(MOST_IDLE).plus(waits) if waits.total else idle


def _raise(last: Pace, highest: int) -> int:
    return min(highest, last.cap + 1)


def _go_blind(last: Pace, limits: Limits, reason: str) -> Pace:
    return Pace(_raise(last, limits.blind), reason, None, is_blind=True)

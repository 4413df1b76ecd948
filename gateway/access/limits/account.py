"""One key with limits, as one worker sees it: its meters, and the headers that tell a client where it stands.

Pure, like the meters. Of several windows the headers show the one with least left, as OpenAI's do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import attrgetter

from gateway.access.limits.allowance import DAY_S, NANO, Ask, KeyLimits, Kind, Meter, build_meters
from gateway.errors import ApiError

_KINDS: tuple[Kind, ...] = ("requests", "tokens", "budget")
_WITHOUT_END = 2**62


class Account:
    """The meters of one key. Windows are all valid from `since` to `until`, in epoch seconds; `roll` enters others.

    Requests spend from a purse per kind, which holds what the least of the kind's leases is. Whoever looks at `meters`
    has the purses emptied into them first; `fill` fills them again. `is_used`: since the last tick; `is_awake`: since
    it was last found idle.
    """

    __slots__ = ("_meters", "_second", "budget", "is_awake", "is_used", "key_id", "limits", "num_waiting", "requests",
                 "since", "tokens", "until")  # fmt: skip

    def __init__(self, key_id: str, limits: KeyLimits, now: float) -> None:
        self.key_id = key_id
        self.limits = limits
        self._meters = build_meters(key_id, limits, now)
        self.requests, self.tokens, self.budget = (Purse(self._meters, kind) for kind in _KINDS)
        self._second = -1  # for which the headers were rendered
        self.num_waiting = 0
        self.is_awake = self.is_used = True
        self.roll(now)

    @property
    def meters(self) -> tuple[Meter, ...]:
        """The meters, with all that was spent. Admits nothing until `fill`."""
        self.requests.empty()
        self.tokens.empty()
        self.budget.empty()
        self._second = -1
        return self._meters

    def fill(self) -> bool:
        """Put what may be spent into the purses; whether there is some of every kind."""
        purses = self.requests, self.tokens, self.budget
        for purse in purses:
            purse.fill()
        self._second = -1
        return all(purse.left > 0 for purse in purses)

    @property
    def is_exhausted(self) -> bool:
        """Whether some limit is known to be used up."""
        return any(meter.is_exhausted for meter in self.meters)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, owed or expected."""
        return all(meter.is_idle for meter in self.meters)

    def roll(self, now: float) -> list[Ask]:
        """Enter the windows of `now`; return what to book of those that ended."""
        booked = [ask for meter in self.meters for ask in meter.roll(now)]
        self.since = max((meter.since for meter in self._meters), default=0)
        self.until = min((meter.ends_at for meter in self._meters), default=_WITHOUT_END)
        return booked

    def close(self) -> list[Ask]:
        """Give up all that is held; return what to book."""
        return [ask for meter in self.meters for ask in meter.close()]

    def render_headers(self, now: float) -> bytes:
        """The `x-ratelimit-…` lines, each with its CRLF. What remains is over all workers, as last read."""
        requests, tokens = self.requests, self.tokens
        if self._second != int(now):
            self.fill()
            self._second = int(now)
            requests.render(now)
            tokens.render(now)
        lines = requests.head
        if lines:
            remaining = requests.left + requests.elsewhere
            lines = b"%b%d%b" % (lines, remaining if remaining > 0 else 0, requests.tail)
        if tokens.head:
            remaining = tokens.left + tokens.elsewhere
            lines = b"%b%b%d%b" % (lines, tokens.head, remaining if remaining > 0 else 0, tokens.tail)
        return lines

    def make_refusal(self, now: float) -> ApiError:
        """The 429, with the headers and Retry-After: the end of the last window that is used up."""
        used_up = [meter for meter in self.meters if meter.lease <= 0 and meter.left <= 0]
        last = max(used_up or self.meters, key=attrgetter("ends_at"))
        retry_after_s = max(1, math.ceil(last.ends_at - now))
        limit = f"{last.limit / NANO:g}" if last.kind == "budget" else str(last.limit)
        period = "day" if last.length_s == DAY_S else "minute"
        lines = self.render_headers(now).decode().splitlines()
        return ApiError(
            429,
            f"Limit reached: {last.kind} per {period}, {limit}. Try again in {format_duration(retry_after_s)}.",
            code="insufficient_quota" if last.kind == "budget" else "rate_limit_exceeded",
            headers={"retry-after": str(retry_after_s), **dict(line.split(": ", 1) for line in lines)},
        )


class Purse:
    """What may be spent of one kind before its meters are asked. Whoever spends subtracts from `left`, and nothing else.

    `head` and `tail`: the header lines of the window with least left around what remains, which is `left` and
    `elsewhere`; empty where the kind has no limit.
    """

    __slots__ = ("_filled", "_meters", "elsewhere", "head", "left", "tail")

    def __init__(self, meters: Iterable[Meter], kind: Kind) -> None:
        self._meters = tuple(meter for meter in meters if meter.kind == kind)
        self.left = self._filled = 0
        self.elsewhere = 0
        self.head = self.tail = b""

    def empty(self) -> None:
        """Let the meters have spent what was spent; nothing is left."""
        spent = self._filled - self.left
        self.left = self._filled = 0
        if spent:
            for meter in self._meters:
                meter.lease -= spent

    def fill(self) -> None:
        """Hold the least of the leases."""
        self.empty()
        self.left = self._filled = min((meter.lease for meter in self._meters), default=_WITHOUT_END)

    def render(self, now: float) -> None:
        """Make the header lines. The purse must be full."""
        if not self._meters:
            return
        shown = min(self._meters, key=lambda meter: meter.left + meter.lease)
        self.elsewhere = shown.left + shown.lease - self._filled
        self.head = f"x-ratelimit-limit-{shown.kind}: {shown.limit}\r\nx-ratelimit-remaining-{shown.kind}: ".encode()
        self.tail = f"\r\nx-ratelimit-reset-{shown.kind}: {format_duration(shown.ends_at - now)}\r\n".encode()


def format_duration(seconds: float) -> str:
    """As in OpenAI's headers: `37s`, `6m0s`, `3h0m5s`; whole seconds, rounded up."""
    whole = max(0, math.ceil(seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours}h{minutes % 60}m{whole % 60}s"
    return f"{minutes}m{whole % 60}s" if minutes else f"{whole}s"

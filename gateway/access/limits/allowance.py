"""What one key may use, as one gateway sees it: it spends from memory what it has leased of every limit's window.

Pure: `now` is passed in, nothing waits or does I/O. Headers show, of several windows of a kind, the one with least left,
as OpenAI's do.
"""

from __future__ import annotations

import math
from operator import attrgetter
from typing import Annotated

import msgspec

from gateway.access.limits.leases import DAY_S, MINUTE_S, NANO, Kind, LeaseRequest, Window
from gateway.errors import ApiError

Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]
Money = Annotated[float, msgspec.Meta(ge=0, le=10**9)]

_KINDS: tuple[Kind, ...] = ("requests", "tokens", "budget")
_WITHOUT_END = 2**62


class KeyLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The limits of one key; None is no limit, 0 lets nothing pass. Budgets are in the currency of the prices."""

    requests_per_minute: Count | None = None
    requests_per_day: Count | None = None
    tokens_per_minute: Count | None = None
    tokens_per_day: Count | None = None
    budget_per_minute: Money | None = None
    budget_per_day: Money | None = None


_Lines = tuple[bytes, int, bytes]
"""A kind's header lines: before what remains, how much of that is not leased here, after it. Empty without a limit."""
_NO_LINES: _Lines = (b"", 0, b"")


class Allowance:
    """The limits of one key. Windows are all valid from `since` to `until`, in epoch seconds; `roll` enters others.

    `requests`, `tokens` and `budget` are what may be spent before the windows are looked at, the least of a kind's
    leases: whoever spends subtracts from them, and nothing else. Whoever looks at `windows` has what was spent taken out
    of them, and nothing may be spent until `fill`. `is_used`: since the last tick; `is_active`: since it was last idle.
    """

    __slots__ = ("_filled", "_lines", "_of_kind", "_second", "_windows", "budget", "is_active", "is_used", "key_id",
                 "limits", "num_waiting", "requests", "since", "tokens", "until")  # fmt: skip

    def __init__(self, key_id: str, limits: KeyLimits, now: float) -> None:
        self.key_id = key_id
        self.limits = limits
        self._windows = build_windows(key_id, limits, now)
        self._of_kind = [[window for window in self._windows if window.kind == kind] for kind in _KINDS]
        self.requests = self.tokens = self.budget = 0
        self._filled = (0, 0, 0)
        self._lines: tuple[_Lines, _Lines] = (_NO_LINES, _NO_LINES)
        self._second = -1  # for which the lines were made
        self.num_waiting = 0
        self.is_active = self.is_used = True
        self.roll(now)

    @property
    def windows(self) -> tuple[Window, ...]:
        """The windows, with all that was spent. Admits nothing until `fill`."""
        left = (self.requests, self.tokens, self.budget)
        for windows, filled, rest in zip(self._of_kind, self._filled, left, strict=True):
            if filled != rest:
                for window in windows:
                    window.lease -= filled - rest
        self.requests = self.tokens = self.budget = 0
        self._filled = (0, 0, 0)
        self._second = -1
        return self._windows

    def fill(self) -> bool:
        """Make the leases ready to be spent; whether there is some of every kind."""
        _ = self.windows
        requests, tokens, budget = (
            min((window.lease for window in windows), default=_WITHOUT_END) for windows in self._of_kind
        )
        self.requests, self.tokens, self.budget = self._filled = requests, tokens, budget
        return requests > 0 and tokens > 0 and budget > 0

    @property
    def is_exhausted(self) -> bool:
        """Whether some limit is known to be used up."""
        return any(window.is_exhausted for window in self.windows)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, owed or expected."""
        return all(window.is_idle for window in self.windows)

    def roll(self, now: float) -> list[LeaseRequest]:
        """Enter the windows of `now`; return what to book of those that ended."""
        booked = [request for window in self.windows for request in window.roll(now)]
        self.since = max((window.since for window in self._windows), default=0)
        self.until = min((window.ends_at for window in self._windows), default=_WITHOUT_END)
        return booked

    def close(self) -> list[LeaseRequest]:
        """Give up all that is held; return what to book."""
        return [request for window in self.windows for request in window.close()]

    def render_headers(self, now: float) -> bytes:
        """The `x-ratelimit-…` lines, each with its CRLF. What remains is over all gateways, as last read."""
        if self._second != int(now):
            self.fill()
            self._second = int(now)
            self._lines = (self._make_lines(0, now), self._make_lines(1, now))
        (head, elsewhere, tail), (tokens_head, tokens_elsewhere, tokens_tail) = self._lines
        lines = b""
        if head:
            remaining = self.requests + elsewhere
            lines = b"%b%d%b" % (head, remaining if remaining > 0 else 0, tail)
        if tokens_head:
            remaining = self.tokens + tokens_elsewhere
            lines = b"%b%b%d%b" % (lines, tokens_head, remaining if remaining > 0 else 0, tokens_tail)
        return lines

    def _make_lines(self, kind: int, now: float) -> _Lines:
        windows = self._of_kind[kind]
        if not windows:
            return _NO_LINES
        shown = min(windows, key=lambda window: window.left + window.lease)
        return (
            f"x-ratelimit-limit-{shown.kind}: {shown.limit}\r\nx-ratelimit-remaining-{shown.kind}: ".encode(),
            shown.left + shown.lease - self._filled[kind],
            f"\r\nx-ratelimit-reset-{shown.kind}: {format_duration(shown.ends_at - now)}\r\n".encode(),
        )

    def make_refusal(self, now: float) -> ApiError:
        """The 429, with the headers and Retry-After: the end of the last window that is used up."""
        used_up = [window for window in self.windows if window.lease <= 0 and window.left <= 0]
        last = max(used_up or self.windows, key=attrgetter("ends_at"))
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


def build_windows(key_id: str, limits: KeyLimits, now: float) -> tuple[Window, ...]:
    """A window for every limit that is set."""
    given: tuple[tuple[Kind, int, float | None], ...] = (
        ("requests", MINUTE_S, limits.requests_per_minute),
        ("requests", DAY_S, limits.requests_per_day),
        ("tokens", MINUTE_S, limits.tokens_per_minute),
        ("tokens", DAY_S, limits.tokens_per_day),
        ("budget", MINUTE_S, limits.budget_per_minute),
        ("budget", DAY_S, limits.budget_per_day),
    )
    return tuple(
        Window(key_id, kind, round(limit * NANO) if kind == "budget" else int(limit), length_s, now)
        for kind, length_s, limit in given
        if limit is not None
    )


def format_duration(seconds: float) -> str:
    """As in OpenAI's headers: `37s`, `6m0s`, `3h0m5s`; whole seconds, rounded up."""
    whole = max(0, math.ceil(seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours}h{minutes % 60}m{whole % 60}s"
    return f"{minutes}m{whole % 60}s" if minutes else f"{whole}s"

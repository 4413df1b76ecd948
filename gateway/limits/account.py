"""One key with limits, as one worker sees it: its meters, and the headers that tell a client where it stands.

Pure, like the meters. Of several windows the headers show the one with least left, as OpenAI's do.
"""

from __future__ import annotations

import math
from operator import attrgetter

from gateway.errors import ApiError
from gateway.limits.allowance import DAY_S, NANO, Ask, KeyLimits, Meter, build_meters


class Account:
    """The meters of one key. Windows are all valid from `since` to `until`, in epoch seconds; `roll` enters others.

    `is_used`: since the last tick; `is_awake`: since it was last found idle.
    """

    __slots__ = ("_headers", "_second", "budgets", "is_awake", "is_used", "key_id", "limits", "meters", "num_waiting",
                 "requests", "since", "tokens", "until")  # fmt: skip

    def __init__(self, key_id: str, limits: KeyLimits, now: float) -> None:
        self.key_id = key_id
        self.limits = limits
        self.meters = build_meters(key_id, limits, now)
        self.requests = tuple(meter for meter in self.meters if meter.kind == "requests")
        self.tokens = tuple(meter for meter in self.meters if meter.kind == "tokens")
        self.budgets = tuple(meter for meter in self.meters if meter.kind == "budget")
        self._headers = tuple(tuple(map(_Header, meters)) for meters in (self.requests, self.tokens) if meters)
        self._second = -1  # for which the headers were rendered
        self.num_waiting = 0
        self.is_awake = self.is_used = True
        self.roll(now)

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
        self.since = max((meter.since for meter in self.meters), default=0)
        self.until = min((meter.ends_at for meter in self.meters), default=2**62)
        self._second = -1
        return booked

    def close(self) -> list[Ask]:
        """Give up all that is held; return what to book."""
        return [ask for meter in self.meters for ask in meter.close()]

    def render_headers(self, now: float) -> bytes:
        """The `x-ratelimit-…` lines, each with its CRLF. What remains is over all workers, as last read."""
        if self._second != int(now):
            self._second = int(now)
            for headers in self._headers:
                for header in headers:
                    header.render_reset(now)
        lines = b""
        for headers in self._headers:
            shown = headers[0]
            least = shown.meter.left + shown.meter.lease
            for header in headers[1:]:
                remaining = header.meter.left + header.meter.lease
                if remaining < least:
                    shown, least = header, remaining
            lines += b"%b%d%b" % (shown.head, least if least > 0 else 0, shown.tail)
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


class _Header:
    """The lines of one meter, rendered but for what changes with every request."""

    __slots__ = ("head", "meter", "tail")

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.head = f"x-ratelimit-limit-{meter.kind}: {meter.limit}\r\nx-ratelimit-remaining-{meter.kind}: ".encode()
        self.tail = b""

    def render_reset(self, now: float) -> None:
        reset = format_duration(self.meter.ends_at - now)
        self.tail = f"\r\nx-ratelimit-reset-{self.meter.kind}: {reset}\r\n".encode()


def format_duration(seconds: float) -> str:
    """As in OpenAI's headers: `37s`, `6m0s`, `3h0m5s`; whole seconds, rounded up."""
    whole = max(0, math.ceil(seconds))
    minutes, hours = whole // 60, whole // 3600
    if hours:
        return f"{hours}h{minutes % 60}m{whole % 60}s"
    return f"{minutes}m{whole % 60}s" if minutes else f"{whole}s"

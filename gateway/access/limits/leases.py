"""Fixed windows (minute and day, UTC) of one limit, and the leases that a gateway takes from the table they share.

Pure: `now` is passed in, nothing waits or does I/O. Promises that grants of one window never sum to more than its
limit, but for what was owed already. Fixed windows let a client use two limits around a window's border.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

MINUTE_S = 60
DAY_S = 86_400
NANO = 1_000_000_000  # budgets are counted in billionths of the currency, so that all counts are whole numbers

Kind = Literal["requests", "tokens", "budget"]

_JITTER_S = 5  # a clock, or a waiting request's `now`, may fall back so far without going back to an ended window
_SHARE = 16  # a lease ahead of need takes at most this part of what is left, so that other gateways find some
_FIRST_SHARE = 64  # the first lease is this part of the limit; what is not used goes back
_TICKS_AHEAD = 16  # a lease should last for so many ticks at the last tick's pace
_IDLE_TICKS = 8  # after so many ticks without use the lease is handed back
_FRESH_TICKS = 4  # that a limit is used up is believed for so many ticks: other gateways may have handed leases back
_LEAD_S = 1.0  # a window in use gets its successor's first lease so long before it ends


Row = tuple[str, str, int, int]
"""The key of a window's row: key_id, kind, length_s, starts_at."""


class LeaseRequest(NamedTuple):
    """What a gateway asks of one window's row.

    `owed` is booked whatever is left, and negative hands back; `need` is wanted now, `want` ahead of need.
    """

    key_id: str
    kind: Kind
    length_s: int
    starts_at: int
    limit: int
    owed: int = 0
    need: int = 0
    want: int = 0

    @property
    def row(self) -> Row:
        """The row's key; gateways lock rows in its order."""
        return self[:4]

    @property
    def ends_at(self) -> int:
        """When the window ends, in epoch seconds."""
        return self.starts_at + self.length_s


class Grant(NamedTuple):
    """What was booked for a request, and what nobody has leased after it (below 0: overspent)."""

    granted: int
    left: int


def find_window(now: float, length_s: int) -> int:
    """When the window of `now` began, in epoch seconds."""
    return int(now // length_s) * length_s


def decide_grant(request: LeaseRequest, used: int) -> int:
    """How much to add to the row's `used`: never beyond the limit, except for what is owed."""
    room = request.limit - used - request.owed
    return request.owed + max(0, min(room, max(request.need, min(request.want, room // _SHARE))))


class Window:
    """One limit of one key in the current window. Not safe for threads.

    `lease` may still be spent here, below 0 it is owed; `left` is what no gateway had leased when the table was last
    read. Whoever spends subtracts from `lease`, and nothing else.
    """

    __slots__ = ("_chunk", "_is_closed", "_is_known", "_num_idle", "_num_stale", "_stock", "ahead", "key_id", "kind",
                 "lease", "left", "length_s", "limit", "starts_at")  # fmt: skip

    def __init__(self, key_id: str, kind: Kind, limit: int, length_s: int, now: float) -> None:
        self.key_id = key_id
        self.kind: Kind = kind
        self.limit = limit
        self.length_s = length_s
        self.starts_at = find_window(now, length_s)
        self.lease = 0
        self.left = limit
        self.ahead: tuple[int, Grant] | None = None  # the next window's start, and what was leased of it
        self._is_closed = False
        self._is_known = False  # whether `left` was read in this window and not long ago
        self._num_stale = 0  # ticks since it was read
        self._stock = 0  # the lease, had nothing been spent since the last tick
        self._chunk = 0  # how large a lease the pace asks for
        self._num_idle = 0

    @property
    def ends_at(self) -> int:
        """When the window ends, in epoch seconds."""
        return self.starts_at + self.length_s

    @property
    def since(self) -> int:
        """From when on the window is valid: somewhat before it begins, so that a clock may jitter."""
        return self.starts_at - _JITTER_S

    @property
    def is_exhausted(self) -> bool:
        """Whether the limit is known to be used up."""
        return self.lease <= 0 and self._is_known and self.left <= 0

    @property
    def is_idle(self) -> bool:
        """Whether nothing is held, owed or expected."""
        return self.lease == 0 and self._chunk == 0 and not self.is_exhausted

    def request(self, num_waiting: int) -> LeaseRequest | None:
        """What to request now, with so many requests waiting; None if the lease will do."""
        owed, held = max(0, -self.lease), max(0, self.lease)
        # What a request will cost in tokens or money is not known before: any rest lets all of them pass.
        lacking = num_waiting - held if self.kind == "requests" or not held else 0
        need = max(0, lacking)
        if need and not self.is_exhausted:
            self._chunk = min(self.limit, max(2 * self._chunk, self.limit // _FIRST_SHARE))
        level = min(self._chunk, max(0, self.left) // _SHARE)
        want = level - held if 2 * held < level else 0
        return self._make_request(self.starts_at, owed=owed, need=need, want=want) if owed or need or want else None

    def request_ahead(self, now: float) -> LeaseRequest | None:
        """What to request of the next window; None until this one is about to end, and while nobody uses it."""
        if now < self.ends_at - _LEAD_S or self._chunk == 0 or self.ahead is not None:
            return None
        return self._make_request(self.ends_at, want=self._chunk)

    def take(self, request: LeaseRequest, grant: Grant) -> LeaseRequest | None:
        """Add what was granted. What came too late is returned, to be handed back: its debt was booked on leaving."""
        if request.starts_at == self.starts_at and not self._is_closed:
            self.lease += grant.granted
            self._stock += grant.granted
            self.left = grant.left
            self._is_known = True
            self._num_stale = 0
        elif request.starts_at == self.ends_at and self.ahead is None and not self._is_closed:
            self.ahead = (request.starts_at, grant)
        elif grant.granted:
            return self._make_request(request.starts_at, owed=-grant.granted)
        return None

    def measure_pace(self, *, is_used: bool = False) -> LeaseRequest | None:
        """Once a tick: learn from what was spent since the last; return what to hand back, if the lease is too large.

        is_used: the key was used since then, so that some lease must stay though nothing of it was spent.
        """
        self._num_stale += 1
        if self._num_stale >= _FRESH_TICKS:
            self._is_known = False
        spent = self._stock - self.lease
        if spent > 0:
            self._num_idle = 0
            self._chunk = min(self.limit, max(self._chunk // 2, spent * _TICKS_AHEAD))
        elif is_used:
            self._num_idle = 0
            self._chunk //= 2
        else:
            self._num_idle += 1
            if self._num_idle >= _IDLE_TICKS:
                self._chunk = 0
        kept = max(self._chunk, 1) if is_used else self._chunk
        surplus = self.lease - kept if self.lease > 4 * kept else 0
        self.lease -= surplus
        self.left += surplus
        self._stock = self.lease
        return self._make_request(self.starts_at, owed=-surplus) if surplus else None

    def roll(self, now: float) -> list[LeaseRequest]:
        """Enter the window of `now`, if it is another one; return what to book of the one that was left."""
        if self.since <= now < self.ends_at:
            return []
        starts_at = find_window(now, self.length_s)
        adopted = self.ahead[1] if self.ahead is not None and self.ahead[0] == starts_at else None
        if adopted is not None:
            self.ahead = None
        booked = self._give_up()
        self.starts_at = starts_at
        self._is_known = False
        self.lease, self.left = adopted or Grant(0, self.limit)
        self._stock = self.lease
        return booked

    def close(self) -> list[LeaseRequest]:
        """Give up all that is held, and take no more; return what to book."""
        self._is_closed = True
        return self._give_up()

    def _give_up(self) -> list[LeaseRequest]:
        booked = [self._make_request(self.starts_at, owed=-self.lease)] if self.lease else []
        if self.ahead is not None and self.ahead[1].granted:
            booked.append(self._make_request(self.ahead[0], owed=-self.ahead[1].granted))
        self.lease = self._stock = 0
        self.ahead = None
        return booked

    def _make_request(self, starts_at: int, *, owed: int = 0, need: int = 0, want: int = 0) -> LeaseRequest:
        return LeaseRequest(self.key_id, self.kind, self.length_s, starts_at, self.limit, owed, need, want)

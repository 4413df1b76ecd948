"""Whether one request is answered twice, by which checkpoints, and in which order the two are shown.

Pure, but for the ledger of who was asked when. A client that did not ask for pairs never gets one; a client's own n >
1, temperature 0 or fixed seed is never paired. Nothing here, nor in the order, tells the client which arm wrote what.
"""

import hashlib
import hmac
from collections import OrderedDict, deque
from dataclasses import dataclass, replace
from random import Random
from typing import Literal

from feedback.events import Share
from gateway.access.keys import Identity
from gateway.engines.deployment import Arm, ServingView
from gateway.errors import bad_request
from gateway.rollout.pure.assignment import may_duel
from gateway.sections.serving import GatewaySection
from gateway.serving.body import EngineRequest
from gateway.serving.routing import Route, Who

_DAY_S = 86400.0
_BYTES_PER_TOKEN = 8  # generous for JSON-escaped text
_DEFAULT_TOKENS = 4096

Compare = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class Ask:
    """Why a request is answered twice, how its two answers are picked, and with which probability it was so."""

    reason: Literal["policy", "random"]
    propensity: float
    share: Share = "random"


@dataclass(frozen=True)
class Side:
    """One of the two answers to be made."""

    arm: Arm
    checkpoint: str
    seed: int


class AskLedger:
    """When each user was asked, and until when not to ask; bounded, forgets the user not seen for longest.

    `max_asks`: how many times of one user are kept; nobody asks for more than whether there were so many.
    """

    def __init__(self, max_asks: int, max_users: int = 100_000) -> None:
        self._max_asks = max_asks
        self._max_users = max_users
        self._asked: OrderedDict[str, deque[float]] = OrderedDict()
        self._quiet_until: dict[str, float] = {}
        self._own: dict[str, float] = {}  # comparisons shown by this gateway -> when

    def num_asked(self, user: str, now: float) -> int:
        """How often the user was asked in the last 24 hours, up to `max_asks`."""
        times = self._asked.get(user)
        if times is None:
            return 0
        while times and times[0] <= now - _DAY_S:
            times.popleft()
        return len(times)

    def is_quiet(self, user: str, now: float) -> bool:
        """Whether the user skipped not long ago."""
        until = self._quiet_until.get(user)
        return until is not None and now < until

    def note_asked(self, user: str, now: float) -> None:
        """The user is about to be shown a comparison: counted before, so that requests at once do not pass the cap."""
        self._asked.setdefault(user, deque(maxlen=self._max_asks)).append(now)
        self._asked.move_to_end(user)
        self._forget_oldest()

    def _forget_oldest(self) -> None:
        while len(self._asked) > self._max_users:
            forgotten, _ = self._asked.popitem(last=False)
            self._quiet_until.pop(forgotten, None)

    def note_shown(self, comparison: str, now: float) -> None:
        """One of this gateway's own comparisons was shown: its user is counted already."""
        self._own[comparison] = now

    def is_own(self, comparison: str) -> bool:
        """Whether this gateway showed it, and not long ago."""
        return comparison in self._own

    def forget_own(self, shown_before: float) -> None:
        """Drop the own comparisons that nobody will ask about."""
        while self._own and next(iter(self._own.values())) < shown_before:
            del self._own[next(iter(self._own))]

    def note_asked_elsewhere(self, user: str, at: float) -> None:
        """Another gateway, or this one before a restart, showed the user a comparison."""
        times = sorted([*self._asked.get(user, ()), at])
        self._asked[user] = deque(times, maxlen=self._max_asks)
        self._forget_oldest()

    def take_back(self, user: str, asked_at: float) -> None:
        """The user was not shown a comparison after all."""
        times = self._asked.get(user)
        if times is not None and asked_at in times:
            times.remove(asked_at)

    def note_skipped(self, user: str, until: float) -> None:
        """The user would rather not be asked before `until`."""
        self._quiet_until[user] = max(until, self._quiet_until.get(user, 0.0))
        if len(self._quiet_until) > 2 * self._max_users:
            self._quiet_until.clear()


def read_compare(value: str | None) -> Compare:
    """The header X-Prefloop-Compare; absent means never. Raises ApiError 400."""
    if value is None:
        return "never"
    lowered = value.strip().lower()
    match lowered:
        case "auto" | "always" | "never":
            return lowered
    raise bad_request("X-Prefloop-Compare must be auto, always or never.", param="x-prefloop-compare")


def may_pair(
    request: EngineRequest, identity: Identity, route: Route, body_bytes: int, max_event_bytes: int
) -> str | None:
    """Why this request cannot be answered twice; None if it can."""
    if not identity.pairs:
        return "key"
    if route.is_pinned:
        return "pinned"
    if request.n not in (None, 1):
        return "n"
    if request.temperature == 0:
        return "temperature"
    if request.seed is not None:
        return "seed"
    if body_bytes + 2 * _BYTES_PER_TOKEN * (request.token_limit or _DEFAULT_TOKENS) > max_event_bytes:
        return "size"
    if request.read_storable_messages() is None:
        return "messages"
    return None


def decide_ask(
    compare: Compare, who: Who, settings: GatewaySection, ledger: AskLedger, *, now: float, rng: Random
) -> Ask | None:
    """Whether to ask. `always` asks whatever the rates say; `auto` by rate, caps and cool-down, or at random."""
    if compare == "never":
        return None
    if compare == "always":
        return Ask("policy", 1.0)
    if rng.random() < settings.random_share:
        return Ask("random", settings.random_share)
    if who.user and (
        ledger.num_asked(who.user, now) >= settings.max_asks_per_user_day or ledger.is_quiet(who.user, now)
    ):
        return None
    if rng.random() < settings.ask_rate:
        return Ask("policy", (1 - settings.random_share) * settings.ask_rate)
    return None


def choose_sides(view: ServingView, who: Who, route: Route, rng: Random) -> tuple[Side, Side]:
    """One candidate of each arm if the user may duel, else two of the arm's own checkpoint; the seeds differ."""
    seed = rng.getrandbits(30)
    other_seed = seed + 1 + rng.getrandbits(29)
    if is_duelist(view, who):
        assert view.stable is not None and view.canary is not None
        return Side("stable", view.stable, seed), Side("canary", view.canary, other_seed)
    return Side(route.arm, route.checkpoint, seed), Side(route.arm, route.checkpoint, other_seed)


def add_sides(sides: tuple[Side, Side], num: int, rng: Random) -> tuple[Side, ...]:
    """Further sides like the first until there are `num`; all seeds differ."""
    seeds = [side.seed for side in sides]
    while len(seeds) < num:
        seeds.append(max(seeds) + 1 + rng.getrandbits(25))
    return (*sides, *(replace(sides[0], seed=seed) for seed in seeds[2:]))


def is_duelist(view: ServingView, who: Who) -> bool:
    """Whether the rollout that is on takes this user's comparisons as evidence."""
    if view.rollout is None or view.canary is None or view.stable is None or not who.user:
        return False
    return may_duel(view.salt, who.user, view.weight, view.duel_share)


def is_swapped(comparison_id: str, key: bytes) -> bool:
    """Whether the second side is shown first: a keyed coin of the comparison's id."""
    return _toss(b"order", comparison_id, key)


def is_last_asked_first(comparison_id: str, key: bytes) -> bool:
    """Whether the engine is asked for the answer shown second before the other; another coin.

    Who is asked first is often complete first: neither a place on the page nor an arm may have that for its own.
    """
    return _toss(b"asked", comparison_id, key)


def _toss(coin: bytes, comparison_id: str, key: bytes) -> bool:
    return bool(hmac.new(key, b"%b:%b" % (coin, comparison_id.encode()), hashlib.sha256).digest()[0] & 1)

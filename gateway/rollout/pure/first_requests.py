"""Users' first requests as columns, so that thousands are judged in milliseconds: who is judged, and what was seen of each.

What a sensor did not see is not a number there, and no event. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import cast

import numpy as np
import numpy.typing as npt

from gateway.rollout.pure.assignment import CANARY
from gateway.rollout.pure.rates import Segment
from gateway.rollout.pure.users import Duel
from gateway.tables.rows import Observation

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]

_NUM_FOR_TAU = 10
_LATENCY_EDGES_S = 0.01 * 1.25 ** np.arange(45)


@dataclass(frozen=True)
class Seen:
    """What one sensor saw of judged users' answers, oldest first: every column is (n,). user: numbers, not names."""

    user: Ints
    canary: Bools
    duel: Bools
    weight: Floats
    event: Bools

    def count(self, *, canary: bool) -> tuple[int, int]:
        """How many answers of an arm were seen, and how many of them with an event."""
        rows = self.canary == canary
        return int(rows.sum()), int(self.event[rows].sum())

    def segment(self) -> list[Segment]:
        """Events by the canary's weight, duels for themselves at 1/2."""
        per_user = np.bincount(self.user[self.event & self.duel], minlength=int(self.user.max(initial=-1)) + 1)
        told = self.event & ~(self.duel & (per_user[self.user] >= 2))  # one of both candidates says nothing of a ratio
        segments = []
        for is_duel in (False, True):
            rows = told & (self.duel == is_duel)
            weight = np.full(rows.sum(), 0.5) if is_duel else self.weight[rows]
            for one in np.unique(weight):
                canary = self.canary[rows][weight == one]
                segments.append(Segment(float(one), len(canary), int(canary.sum())))
        return segments


@dataclass(frozen=True)
class FirstRequests:
    """The judged first requests, oldest first, one row an answer: every column is (n,).

    error, truncated, refused: 1, 0, or not a number where the sensor saw nothing; likewise the seconds.
    """

    user: Ints
    canary: Bools
    duel: Bools
    weight: Floats
    error: Floats
    truncated: Floats
    refused: Floats
    first_token_s: Floats
    token_s: Floats
    length: Floats

    @property
    def num_users(self) -> int:
        """Users of whom anything is judged."""
        return len(np.unique(self.user))

    def see(self, column: Floats) -> Seen:
        """The answers of which a column's sensor saw anything, an event where it is not 0."""
        rows = ~np.isnan(column)
        return Seen(self.user[rows], self.canary[rows], self.duel[rows], self.weight[rows], column[rows] != 0)

    def see_slow(self, seconds: Floats) -> Seen:
        """Whether it took longer than tau, the slowest of stable's first 10 answers; who came before the last is not judged."""
        known = ~np.isnan(seconds)
        num_stable = np.cumsum(known & ~self.canary)
        early = seconds[known & ~self.canary][:_NUM_FOR_TAU]
        if len(early) < _NUM_FOR_TAU:
            return self.see(np.full(len(seconds), np.nan))
        quantile = np.sort(early)[int(np.ceil(0.95 * _NUM_FOR_TAU)) - 1]
        edge = np.searchsorted(_LATENCY_EDGES_S, quantile)
        tau = _LATENCY_EDGES_S[edge] if edge < len(_LATENCY_EDGES_S) else quantile
        before: Ints = num_stable - (known & ~self.canary)  # of stable's, without this one
        return self.see(np.where(known & (before >= _NUM_FOR_TAU), seconds > tau, np.nan))

    def compare_lengths(self) -> Floats:
        """Of each duel of which both lengths are known, the canary's minus stable's, as a share of the most: (duels,)."""
        rows = np.flatnonzero(self.duel & ~np.isnan(self.length))
        rows = rows[np.argsort(self.user[rows], kind="stable")]
        user, canary, length = self.user[rows], self.canary[rows], self.length[rows]
        both = np.flatnonzero(user[1:] == user[:-1])  # the first row of each pair
        return cast(Floats, np.where(canary[both], 1, -1) * (length[both] - length[both + 1]))

    def count_arms(self) -> list[tuple[float, int, int]]:
        """By weight, (weight, canary, stable): single answers by the arm that really answered; of a duel both did."""
        single = ~self.duel
        weights = np.unique(self.weight[single])
        arms = [self.canary[single & (self.weight == weight)] for weight in weights]
        return [(float(weight), int(arm.sum()), int((~arm).sum())) for weight, arm in zip(weights, arms, strict=True)]


def read_first_requests(observed: Sequence[Observation]) -> FirstRequests:
    """Each user's first request, if it is judged: a single answer, or both halves of a duel. observed: oldest first.

    Who was first answered by an explore pair is seen and not judged: only stable has such pairs, and users of the canary
    who might have had one duel in another segment.
    A gateway does not know whom another has seen. Of a later duel there, the half of the user's own arm meets the row of
    the first request, and the other one alone enters the table: no user's first, and all from one arm.
    """
    numbers: dict[str, int] = {}
    user = np.array([numbers.setdefault(o.user, len(numbers)) for o in observed], dtype=np.int64)
    duel, single = (np.array([o.answered == how for o in observed], dtype=bool) for how in ("duel", "single"))
    alone, first_alone = np.unique(user[~duel], return_index=True)
    rows = np.flatnonzero(~duel)[first_alone]
    is_alone = np.zeros(len(numbers), dtype=bool)
    is_alone[alone] = True
    kept = duel & ~is_alone[user] & (np.bincount(user, minlength=len(numbers))[user] == 2)
    kept[rows] = single[rows]

    def column(name: str) -> Floats:
        values = np.array(list(map(attrgetter(name), observed)), dtype=np.float64)  # None becomes not a number
        return cast(Floats, values[kept])

    return FirstRequests(
        user=user[kept],
        canary=np.array([o.arm == CANARY for o in observed], dtype=bool)[kept],
        duel=duel[kept],
        weight=column("weight"),
        error=column("error"),
        truncated=column("truncated"),
        refused=column("refused"),
        first_token_s=column("latency_first_s"),
        token_s=column("latency_token_s"),
        length=column("length"),
    )


def count_explored(observed: Sequence[Observation], event: str) -> tuple[int, int]:
    """How many first requests explore pairs of the canary answered, of which a sensor saw anything, and how many events.

    Only what serves nearly everybody has such pairs: they say nothing of a ratio, but of the rate itself they do. An answer
    that failed has no other event.
    """
    pairs = [one for one in observed if one.answered == "explore" and one.arm == CANARY]
    known = [getattr(one, event) for one in pairs if event == "error" or not one.error]
    events = [value for value in known if value is not None]
    return len(events), sum(map(bool, events))


def see_harm(firsts: Sequence[Duel]) -> Seen:
    """Users' first duels of which anything was said, both candidates of each."""
    num = len(firsts)
    user = np.arange(num)
    return Seen(
        user=np.concatenate([user, user]),
        canary=np.repeat([True, False], num),
        duel=np.ones(2 * num, dtype=bool),
        weight=np.full(2 * num, 0.5),
        event=np.array([d.harmful_canary for d in firsts] + [d.harmful_stable for d in firsts], dtype=bool),
    )

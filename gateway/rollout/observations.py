"""Keeps each known user's first finished request of a rollout, which is what the rate guardrails judge.

Later requests are ignored: judging repeated events would let heavy users decide. A duel counts once for each arm.
Bounded in memory and flushed by the controller; a crash loses at most the half second since the last flush.
"""

import time
from collections.abc import Callable, Iterable

from gateway.tables.rows import Observation


class Observations:
    """The first request of every user in the rollout that is on. Used from one event loop."""

    def __init__(self, *, max_users: int = 200_000, clock: Callable[[], float] = time.time) -> None:
        self._max_users = max_users
        self._clock = clock
        self._rollout: str | None = None
        self._weight = 0.0
        self._seen: dict[str, tuple[bool, frozenset[str]]] = {}
        self._fresh: list[Observation] = []
        self.num_dropped = 0

    def begin(self, rollout: str | None, weight: float, seen: Iterable[tuple[str, str, bool]] | None = None) -> None:
        """Set the rollout to observe and its weight; `seen`: (user, arm, paired) of what the database already holds."""
        self._weight = weight
        if rollout != self._rollout:
            self._rollout, self._seen = rollout, {}
        for user, arm, paired in seen or ():
            arms = self._seen.get(user, (paired, frozenset[str]()))[1]
            self._seen[user] = (paired, arms | {arm})

    def is_settled(self, rollout: str, user: str) -> bool:
        """Whether one more answer to this user changes nothing, unless it is a candidate of a duel."""
        return not user or user in self._seen or rollout != self._rollout

    def note(
        self,
        rollout: str | None,
        user: str,
        arm: str,
        error: bool,
        truncated: bool,
        refused: bool,
        latency_first_s: float | None,
        *,
        paired: bool = False,
        weight: float | None = None,
    ) -> None:
        """Record a finished request if it is the user's first of the rollout.

        `paired`: one candidate of a duel; call once for each arm. `weight`: the canary weight when the arm was chosen
        (the current one if not given). Requests of unknown users ("") and of other rollouts are ignored.
        """
        if rollout is None or rollout != self._rollout or not user:
            return
        known = self._seen.get(user)
        if known is not None:
            was_paired, arms = known
            if not (paired and was_paired) or arm in arms:
                return
        elif len(self._seen) >= self._max_users:
            self.num_dropped += 1
            return
        self._seen[user] = (paired, (known[1] if known else frozenset()) | {arm})
        at_weight, now = self._weight if weight is None else weight, self._clock()
        self._fresh.append(
            Observation(rollout, user, arm, paired, at_weight, error, truncated, refused, latency_first_s, now)
        )

    def take(self) -> list[Observation]:
        """Return what was noted since the last call, oldest first."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def give_back(self, rows: list[Observation]) -> None:
        """Put rows back whose write failed, before newer ones."""
        self._fresh = rows + self._fresh

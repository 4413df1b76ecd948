"""Keeps each known user's first finished request of a rollout, and the duels that ended by a failure.

Later requests are ignored: judging repeated events would let heavy users decide. A duel counts once for each arm; of one
with a failed candidate nobody is asked, and that candidate has lost. Bounded in memory and flushed by the controller; a
crash loses at most the half second since the last flush.
"""

import time
import uuid
from collections.abc import Callable, Collection, Iterable

from feedback.duels import FailedDuel
from gateway.tables.rows import Answered, Divergence, Observation

_MAX_FAILED = 100_000  # that wait to be stored


class Observations:
    """The first request of every user in the rollout that is on. Used from one event loop."""

    def __init__(self, *, max_users: int = 200_000, clock: Callable[[], float] = time.time) -> None:
        self._max_users = max_users
        self._clock = clock
        self._rollout: str | None = None
        self._weight = 0.0
        self._seen: dict[str, tuple[Answered, frozenset[str]]] = {}
        self._fresh: list[Observation] = []
        self._failed: list[FailedDuel] = []
        self._measured: set[str] = set()
        self._divergences: list[Divergence] = []
        self.num_dropped = 0

    def begin(
        self, rollout: str | None, weight: float, seen: Iterable[tuple[str, str, Answered]] | None = None
    ) -> None:
        """Set the rollout to observe and its weight; `seen`: (user, arm, answered) of what the database already holds."""
        self._weight = weight
        if rollout != self._rollout:
            self._rollout, self._seen, self._measured = rollout, {}, set()
        for user, arm, answered in seen or ():
            arms = self._seen.get(user, (answered, frozenset[str]()))[1]
            self._seen[user] = (answered, arms | {arm})

    def is_settled(self, rollout: str, user: str) -> bool:
        """Whether one more answer to this user changes nothing, unless it is a candidate of a duel."""
        return not user or user in self._seen or rollout != self._rollout

    def record(
        self,
        rollout: str | None,
        user: str,
        arm: str,
        error: bool,
        truncated: bool | None,
        refused: bool | None,
        latency_first_s: float | None,
        *,
        latency_token_s: float | None = None,
        length: float | None = None,
        answered: Answered = "single",
        weight: float | None = None,
    ) -> None:
        """Keep a finished request if it is the user's first of the rollout.

        answered: how; call twice for a duel, once for each arm, and once for an explore pair. weight: the canary's when
        the arm was chosen (the current one if not given). Requests of unknown users ("") and of other rollouts are ignored.
        """
        if rollout is None or rollout != self._rollout or not user:
            return
        known = self._seen.get(user)
        if known is not None:
            if (known[0], answered) != ("duel", "duel") or arm in known[1]:
                return
        elif len(self._seen) >= self._max_users:
            self.num_dropped += 1
            return
        self._seen[user] = (answered, (known[1] if known else frozenset()) | {arm})
        at_weight, now = self._weight if weight is None else weight, self._clock()
        one = Observation(
            rollout,
            user,
            arm,
            answered,
            at_weight,
            error,
            truncated,
            refused,
            latency_first_s,
            now,
            latency_token_s,
            length,
        )
        self._fresh.append(one)

    def record_failed_duel(self, rollout: str | None, user: str, failed_arms: Collection[str]) -> None:
        """Keep the outcome of a duel of which one candidate failed, or both: nobody is asked about it.

        rollout: its id, whatever its stage. failed_arms: "stable", "canary" or both, which is 0.
        """
        if rollout is None or self._rollout is None or rollout != self._rollout.partition(".")[0] or not user:
            return
        if len(self._failed) >= _MAX_FAILED:
            self.num_dropped += 1
            return
        outcome = ("stable" in failed_arms) - ("canary" in failed_arms)
        self._failed.append(FailedDuel(uuid.uuid4().hex, rollout, user, self._clock(), outcome))

    def claim_measurement(self, rollout: str, user: str) -> bool:
        """Whether an answer to this user is to be measured, of which none was in this rollout; from now on one is."""
        if rollout != self._rollout or user in self._measured or len(self._measured) >= self._max_users:
            return False
        self._measured.add(user)
        return True

    def unclaim_measurement(self, user: str) -> None:
        """There was no room for it: a later answer to this user may be measured."""
        self._measured.discard(user)

    def record_divergence(self, rollout: str, user: str, at: float, nats: float) -> None:
        """Keep how far the canary's answer at `at` (epoch seconds) was from stable, in nats a token."""
        self._divergences.append(Divergence(rollout, user, at, nats))

    def drain(self) -> tuple[list[Observation], list[FailedDuel], list[Divergence]]:
        """Return what was recorded since the last call, oldest first."""
        taken = self._fresh, self._failed, self._divergences
        self._fresh, self._failed, self._divergences = [], [], []
        return taken

    def restore(self, rows: list[Observation], failed: list[FailedDuel], divergences: list[Divergence]) -> None:
        """Put rows back whose write failed, before newer ones."""
        self._fresh, self._failed = rows + self._fresh, failed + self._failed
        self._divergences = divergences + self._divergences

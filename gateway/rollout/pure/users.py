"""What one user's duels come to: all that evidence and guardrails need to know of them.

So a rollout is weighed from its users, however often each of them chose. Pure.
"""

from collections.abc import Sequence
from operator import attrgetter

import msgspec

Tag = tuple[str, str]  # what an app says of a request: its name, such as "language", and value


class Duel(msgspec.Struct, frozen=True, gc=False):
    """One duel from the canary's side: outcome +1, 0 or -1. `chosen_at` None: shown and not decided (yet).

    failed: decided by a candidate's failure, without anybody's choice. skipped: answered, without deciding it.
    tags: what the app said of the request. differences: the canary's answer less stable's, by trait; empty where nobody compared them.
    unscreened: a harm screen is to look at it, and has not, so that it says nothing of harm.
    """

    user: str
    asked_at: float
    chosen_at: float | None
    outcome: int
    both_bad: bool = False
    harmful_canary: bool = False
    harmful_stable: bool = False
    canary_first: bool = False
    failed: bool = False
    skipped: bool = False
    tags: tuple[Tag, ...] = ()
    differences: tuple[tuple[str, float], ...] = ()
    unscreened: bool = False


class Voter(msgspec.Struct, frozen=True, gc=False):
    """A user's duels. first: the earliest asked that was answered, if only by skipping it; None if there is none.

    complete_at: when `cap` duels were decided, or `window_s` had passed since the first was asked. score: wins - losses
    over the first `cap` that were decided until then. last_chosen_at: 0 without votes.
    """

    user: str
    first_asked_at: float
    complete_at: float
    score: int
    votes: int
    wins: int
    losses: int
    both_bad: int
    last_chosen_at: float
    first: Duel | None

    @property
    def ties(self) -> int:
        """Votes for neither, without those that found both bad."""
        return self.votes - self.wins - self.losses - self.both_bad


def sum_up(own: Sequence[Duel], *, cap: int, window_s: float) -> Voter:
    """One user's duels, in any order and at least one."""
    first_asked_at = min(duel.asked_at for duel in own)
    closes_at = first_asked_at + window_s
    decided = sorted([(at, duel.asked_at, duel.outcome) for duel in own if (at := duel.chosen_at) is not None])
    outcomes = [outcome for _, _, outcome in decided]
    counted = [one for one in decided if one[0] <= closes_at][:cap]
    return Voter(
        user=own[0].user,
        first_asked_at=first_asked_at,
        complete_at=counted[-1][0] if len(counted) == cap else closes_at,
        score=sum([outcome for _, _, outcome in counted]),
        votes=len(decided),
        wins=outcomes.count(1),
        losses=outcomes.count(-1),
        both_bad=sum([duel.both_bad for duel in own]),
        last_chosen_at=decided[-1][0] if decided else 0.0,
        first=min(
            [duel for duel in own if (duel.chosen_at is not None or duel.skipped) and not duel.failed],
            key=attrgetter("asked_at"),
            default=None,
        ),
    )

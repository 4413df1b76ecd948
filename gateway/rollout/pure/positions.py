"""How the canary fares by the place on the page where it is shown. For display: the order is random, so no verdict needs it. Pure."""

from collections.abc import Iterable

import msgspec

from gateway.rollout.pure.users import Duel


class PositionTally(msgspec.Struct, frozen=True):
    """Decided duels with the canary's answer in one place, from the canary's side. They are duels, not users."""

    votes: int = 0
    wins: int = 0
    losses: int = 0
    both_bad: int = 0

    @property
    def ties(self) -> int:
        """Votes for neither, without those that found both bad."""
        return self.votes - self.wins - self.losses - self.both_bad


class Positions(msgspec.Struct, frozen=True):
    """first, second: where the canary's answer was shown."""

    first: PositionTally = PositionTally()
    second: PositionTally = PositionTally()

    @property
    def first_share(self) -> float | None:
        """The share of decided duels in which the answer shown first was preferred, whosever it was; 1/2 without a bias."""
        decided = self.first.wins + self.first.losses + self.second.wins + self.second.losses
        return (self.first.wins + self.second.losses) / decided if decided else None


def tally_positions(duels: Iterable[Duel]) -> Positions:
    """Count what was decided by people; of a duel that failed nobody saw an order."""
    counts = {True: [0, 0, 0, 0], False: [0, 0, 0, 0]}
    for duel in duels:
        if duel.chosen_at is None or duel.failed:
            continue
        own = counts[duel.canary_first]
        own[0] += 1
        own[1] += duel.outcome > 0
        own[2] += duel.outcome < 0
        own[3] += duel.both_bad
    return Positions(PositionTally(*counts[True]), PositionTally(*counts[False]))

"""Measures whether people choose an answer for where it stands, or for when it was there, and not for what it says.

Pure, but for `load_votes`. Each user counts once, by the oldest choice: one user's choices are not independent. Says
how things go together, not why: a short answer is complete before a long one, and may be liked for that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from feedback.choices import choices, comparisons
from feedback.events import CLEVER, Position, Share

Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Vote:
    """A user preferred one of two answers. finished_first: the one that was complete before the other, if known.

    share: how the two were picked; only those picked at random judge.
    """

    user: str
    chosen: Position
    finished_first: Position | None = None
    share: Share = ""


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95% interval, made of `num` users. Without any it spans all that is possible."""

    num: int
    estimate: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether the value is outside."""
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Bias:
    """shown_first, finished_first: the share of users who chose that answer; .5 if it does not matter.

    finish_effect: how much likelier the answer shown first is chosen when it was also complete first, between -1 and 1; 0
    if it does not matter. Unlike finished_first it is free of what the place on the page does.
    """

    shown_first: Interval
    finished_first: Interval
    finish_effect: Interval

    @property
    def is_biased(self) -> bool:
        """Whether place or time has an effect, at 95% each."""
        return self.shown_first.excludes(0.5) or self.finish_effect.excludes(0.0)


def measure_bias(votes: Iterable[Vote]) -> Bias:
    """Weigh votes, the oldest first. Those of unknown users ("") are left out."""
    counted: dict[str, Vote] = {}
    for vote in votes:
        if vote.user:
            counted.setdefault(vote.user, vote)
    kept = list(counted.values())
    timed = [vote for vote in kept if vote.finished_first is not None]
    first_done = [vote.chosen == "first" for vote in timed if vote.finished_first == "first"]
    second_done = [vote.chosen == "first" for vote in timed if vote.finished_first == "second"]
    return Bias(
        shown_first=estimate_share(sum(vote.chosen == "first" for vote in kept), len(kept)),
        finished_first=estimate_share(sum(vote.chosen == vote.finished_first for vote in timed), len(timed)),
        finish_effect=estimate_difference(sum(first_done), len(first_done), sum(second_done), len(second_done)),
    )


def measure_bias_by_share(votes: Sequence[Vote]) -> dict[Share, Bias]:
    """The same for each way in which the two answers were picked, as far as there are votes: "random" has old ones too."""
    by_share: dict[Share, list[Vote]] = {}
    for vote in votes:
        by_share.setdefault(vote.share or "random", []).append(vote)
    return {share: measure_bias(some) for share, some in sorted(by_share.items())}


def list_judging(votes: Iterable[Vote]) -> list[Vote]:
    """Votes between answers that were picked at random."""
    return [vote for vote in votes if vote.share not in CLEVER]


def estimate_share(num_hits: int, num: int) -> Interval:
    """A share with Wilson's score interval (1927)."""
    if num == 0:
        return Interval(0, 0.5, 0.0, 1.0)
    share, z2 = num_hits / num, Z_95 * Z_95
    centre = (share + z2 / (2 * num)) / (1 + z2 / num)
    half = Z_95 / (1 + z2 / num) * math.sqrt(share * (1 - share) / num + z2 / (4 * num * num))
    return Interval(num, share, max(0.0, centre - half), min(1.0, centre + half))


def estimate_difference(num_hits: int, num: int, other_hits: int, num_other: int) -> Interval:
    """The difference of two shares with the score interval of Newcombe (1998), method 10."""
    one, other = estimate_share(num_hits, num), estimate_share(other_hits, num_other)
    if num == 0 or num_other == 0:
        return Interval(num + num_other, 0.0, -1.0, 1.0)
    difference = one.estimate - other.estimate
    below = math.hypot(one.estimate - one.low, other.high - other.estimate)
    above = math.hypot(one.high - one.estimate, other.estimate - other.low)
    return Interval(num + num_other, difference, difference - below, difference + above)


def load_votes(connection: sa.Connection, limit: int) -> list[Vote]:
    """The newest `limit` choices between first and second, the oldest first."""
    query = (
        sa.select(comparisons.c.user, comparisons.c.share, choices.c.preferred, comparisons.c.finished_first)
        .join(comparisons, comparisons.c.id == choices.c.comparison_id)
        .where(choices.c.preferred.in_(("first", "second")))
        .order_by(choices.c.chosen_at.desc(), choices.c.comparison_id.desc())
        .limit(limit)
    )
    return [Vote(row.user, row.preferred, row.finished_first, row.share) for row in connection.execute(query)][::-1]

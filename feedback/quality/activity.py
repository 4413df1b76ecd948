"""Who says what of the comparisons that are shown: verdicts, seconds to decide, and how much of it few people say.

Pure, but for the functions that load. Looks at the newest choices, not at all: an operator asks how it goes now.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import msgspec
import sqlalchemy as sa

from feedback.choices import choices, comparisons

DAY_S = 86_400
NUM_TOP_USERS = 10


@dataclass(frozen=True)
class Said:
    """A choice, without the words. user is a keyed hash, "" if unknown; times in epoch seconds."""

    user: str
    app: str
    asked: str
    preferred: str
    harmful: bool
    created_at: float
    chosen_at: float


class UserShare(msgspec.Struct, frozen=True):
    """How many of the choices one user made. user: the beginning of a keyed hash, "" for all who are unknown."""

    user: str
    choices: int
    share: float


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """What was said, over `choices` of the newest. since: when the oldest of them was made, None without any.

    users: those who are known. median_seconds: from the comparison to the choice. harmful: choices that reported harm.
    top_users: who chose most, at most ten; share: of all `choices`.
    """

    choices: int
    since: float | None
    users: int
    harmful: int
    median_seconds: float | None
    by_verdict: dict[str, int]
    by_asked: dict[str, int]
    by_app: dict[str, int]
    top_users: list[UserShare]


class DayCount(msgspec.Struct, frozen=True):
    """A day of UTC, by the epoch seconds of its start: comparisons shown, and choices made of any."""

    starts_at: int
    comparisons: int
    choices: int


def summarise_activity(said: Sequence[Said]) -> Activity:
    """said: in any order."""
    by_user = Counter(each.user for each in said)
    seconds = [max(0.0, each.chosen_at - each.created_at) for each in said if each.preferred != "skip"]
    return Activity(
        choices=len(said),
        since=min((each.chosen_at for each in said), default=None),
        users=sum(1 for user in by_user if user),
        harmful=sum(each.harmful for each in said),
        median_seconds=median(seconds) if seconds else None,
        by_verdict=_count(each.preferred for each in said),
        by_asked=_count(each.asked for each in said),
        by_app=_count(each.app for each in said),
        top_users=[
            UserShare(user[:12], num, num / len(said))
            for user, num in sorted(by_user.items(), key=lambda item: (-item[1], item[0]))[:NUM_TOP_USERS]
        ],
    )


def _count(values: Iterable[str]) -> dict[str, int]:
    return dict(Counter(values).most_common())


def load_said(connection: sa.Connection, policy: str, limit: int) -> list[Said]:
    """The newest `limit` choices of a policy, the newest first."""
    query = (
        sa.select(
            comparisons.c.user, comparisons.c.app, comparisons.c.asked, choices.c.preferred, choices.c.harmful,
            comparisons.c.created_at, choices.c.chosen_at,
        )
        .join(comparisons, comparisons.c.id == choices.c.comparison_id)
        .where(comparisons.c.policy == policy)
        .order_by(choices.c.chosen_at.desc())
        .limit(limit)
    )  # fmt: skip
    return [Said(*row) for row in connection.execute(query)]


def count_days(connection: sa.Connection, policy: str, now: float, num_days: int) -> list[DayCount]:
    """The last days, today's the last."""
    first = int(now // DAY_S) - num_days + 1
    is_ours = comparisons.c.policy == policy
    shown = sa.select(_day(comparisons.c.created_at)).where(is_ours, comparisons.c.created_at >= first * DAY_S)
    made = (
        sa.select(_day(choices.c.chosen_at))
        .join(comparisons, comparisons.c.id == choices.c.comparison_id)
        .where(is_ours, choices.c.chosen_at >= first * DAY_S)
    )
    num_shown, num_made = (_count_by_day(connection, query) for query in (shown, made))
    return [
        DayCount(day * DAY_S, num_shown.get(day, 0), num_made.get(day, 0)) for day in range(first, first + num_days)
    ]


def _day(column: sa.ColumnElement[float]) -> sa.ColumnElement[float]:
    return sa.func.floor(column / DAY_S).label("day")


def _count_by_day(connection: sa.Connection, query: sa.Select[float]) -> dict[int, int]:
    days = query.subquery()
    counted = sa.select(days.c.day, sa.func.count()).group_by(days.c.day)
    return {int(day): num for day, num in connection.execute(counted)}

"""Rows that learning could not use, each with its error: kept apart until somebody has them tried again.

A preference, signal or demonstration here is neither learnt from nor judged by. Dead letters are records that could not be
read; these were read and stored, and then failed. Functions take a connection inside a transaction of the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from feedback.database import insert_or_ignore
from feedback.inbox import demonstrations, preferences, quarantine, signals


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A row in quarantine. part: where it failed.

    preference_id is a preference's place in the trainer's database; 0, with no comparison, for other rows.
    """

    event_id: str
    preference_id: int
    comparison_id: str
    app: str
    part: str
    error: str
    quarantined_at: float


def add(connection: sa.Connection, event_id: str, part: str, error: str, now: float) -> bool:
    """Put a preference into quarantine; False if it is there already, and then its first error stands."""
    row = {"event_id": event_id, "part": part, "error": error, "quarantined_at": now}
    return insert_or_ignore(connection, quarantine, row)


def load(connection: sa.Connection) -> list[Quarantined]:
    """What is in quarantine, in the order of arrival."""
    joined: sa.FromClause = quarantine
    for table in (preferences, signals, demonstrations):
        joined = joined.outerjoin(table, table.c.event_id == quarantine.c.event_id)
    app = sa.func.coalesce(preferences.c.app, signals.c.app, demonstrations.c.app, "")
    query = sa.select(
        quarantine,
        sa.func.coalesce(preferences.c.id, 0).label("preference_id"),
        sa.func.coalesce(preferences.c.comparison_id, "").label("comparison_id"),
        app.label("app"),
    )
    order = (sa.func.coalesce(preferences.c.id, 0), quarantine.c.quarantined_at, quarantine.c.event_id)
    rows = connection.execute(query.select_from(joined).order_by(*order)).mappings()
    return [Quarantined(**row) for row in rows]


def release(connection: sa.Connection, event_ids: Sequence[str] | None = None) -> int:
    """Have learning try preferences again, all if none are named; return how many. What fails again comes back."""
    statement = sa.delete(quarantine)
    if event_ids is not None:
        statement = statement.where(quarantine.c.event_id.in_(event_ids))
    return connection.execute(statement).rowcount


def count(connection: sa.Connection) -> int:
    """How many preferences are in quarantine."""
    return connection.execute(sa.select(sa.func.count()).select_from(quarantine)).scalar_one()

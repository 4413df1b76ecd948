"""Preferences that learning could not use, each with its error: kept apart until somebody has them tried again.

A preference here is neither learnt from nor judged by. Dead letters are records that could not be read; these were read
and stored, and then failed. Functions take a connection inside a transaction of the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from feedback.database import insert_or_ignore
from feedback.inbox import preferences, quarantine


@dataclass(frozen=True, kw_only=True)
class Quarantined:
    """A preference in quarantine. preference_id is its place in the trainer's database; part: where it failed."""

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
    joined = quarantine.join(preferences, preferences.c.event_id == quarantine.c.event_id)
    query = sa.select(
        quarantine, preferences.c.id.label("preference_id"), preferences.c.comparison_id, preferences.c.app
    )
    rows = connection.execute(query.select_from(joined).order_by(preferences.c.id)).mappings()
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

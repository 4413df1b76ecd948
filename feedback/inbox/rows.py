"""Reads what the inbox stored, and counts how often the reward model used it."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from feedback.inbox.tables import dead_letters, preferences, signals


def count_preferences(connection: sa.Connection) -> int:
    """Choices ever stored, skips included."""
    return connection.execute(sa.select(sa.func.count()).select_from(preferences)).scalar_one()


def count_signals(connection: sa.Connection) -> int:
    """Signals ever stored."""
    return connection.execute(sa.select(sa.func.count()).select_from(signals)).scalar_one()


def count_dead_letters(connection: sa.Connection) -> int:
    """Records that could not be read."""
    return connection.execute(sa.select(sa.func.count()).select_from(dead_letters)).scalar_one()


def mark_used(connection: sa.Connection, ids: Sequence[int], *, as_new: bool) -> None:
    """Count one use of each preference, as new or as replay."""
    column = preferences.c.used_as_new if as_new else preferences.c.used_as_replay
    connection.execute(sa.update(preferences).where(preferences.c.id.in_(ids)).values({column: column + 1}))

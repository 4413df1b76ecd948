"""Reads what the inbox stored, and counts how often the reward model used it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from feedback.events import Choice, Signal
from feedback.inbox.splits import Split
from feedback.inbox.tables import dead_letters, preferences, signals


@dataclass(frozen=True, kw_only=True)
class PreferenceRow:
    """One stored choice. used_as_new and used_as_replay count the reward model's steps it was part of."""

    id: int
    event_id: str
    user: str
    prompt_key: str
    preferred: str
    choice_json: bytes
    chosen_at: float
    split: Split
    used_as_new: int
    used_as_replay: int

    @property
    def choice(self) -> Choice:
        """The choice, with its comparison."""
        return msgspec.json.decode(self.choice_json, type=Choice)


def load_preferences(
    connection: sa.Connection, *, after_id: int = 0, split: Split | None = None, limit: int | None = None
) -> list[PreferenceRow]:
    """Stored choices in the order of their arrival."""
    names = [field for field in PreferenceRow.__dataclass_fields__]
    query = sa.select(*(preferences.c[name] for name in names)).where(preferences.c.id > after_id)
    if split is not None:
        query = query.where(preferences.c.split == split)
    rows = connection.execute(query.order_by(preferences.c.id).limit(limit)).mappings()
    return [PreferenceRow(**row) for row in rows]


def count_preferences(connection: sa.Connection) -> int:
    """Choices ever stored, skips included."""
    return connection.execute(sa.select(sa.func.count()).select_from(preferences)).scalar_one()


def load_signals(connection: sa.Connection, *, after_id: int = 0, limit: int | None = None) -> list[tuple[int, Signal]]:
    """Stored signals with the ids of their rows, in the order of their arrival."""
    query = sa.select(signals.c.id, signals.c.signal_json).where(signals.c.id > after_id)
    rows = connection.execute(query.order_by(signals.c.id).limit(limit))
    return [(row.id, msgspec.json.decode(row.signal_json, type=Signal)) for row in rows]


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

"""What tests alone do with the stores: read rows whole, count them, record one choice."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from feedback.choices import NewChoice, StoredChoice, record_choices
from feedback.events import Choice, Preferred, Signal
from feedback.inbox import preferences
from feedback.inbox import signals as trainer_signals
from feedback.signals import signals


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
    split: str
    cluster: int | None
    used_as_new: int
    used_as_replay: int

    @property
    def choice(self) -> Choice:
        """The choice, with its comparison."""
        return msgspec.json.decode(self.choice_json, type=Choice)


def load_preferences(
    connection: sa.Connection, *, after_id: int = 0, split: str | None = None, limit: int | None = None
) -> list[PreferenceRow]:
    """Stored choices in the order of their arrival."""
    names = [field for field in PreferenceRow.__dataclass_fields__]
    query = sa.select(*(preferences.c[name] for name in names)).where(preferences.c.id > after_id)
    if split is not None:
        query = query.where(preferences.c.split == split)
    rows = connection.execute(query.order_by(preferences.c.id).limit(limit)).mappings()
    return [PreferenceRow(**row) for row in rows]


def load_signals(connection: sa.Connection, *, after_id: int = 0, limit: int | None = None) -> list[tuple[int, Signal]]:
    """Stored signals with the ids of their rows, in the order of their arrival."""
    query = sa.select(trainer_signals.c.id, trainer_signals.c.signal_json).where(trainer_signals.c.id > after_id)
    rows = connection.execute(query.order_by(trainer_signals.c.id).limit(limit))
    return [(row.id, msgspec.json.decode(row.signal_json, type=Signal)) for row in rows]


def record_choice(
    connection: sa.Connection,
    comparison_id: str,
    preferred: Preferred,
    strength: float | None,
    harmful: bool,
    channel: str,
    now: float,
    *,
    source: str = "prefloop/gateway",
) -> StoredChoice:
    """Store a choice and its outbox row; the same choice again replays the stored one, however late.

    Raises UnknownComparison, ExpiredComparison after expiry, ConflictingChoice if another choice stands.
    """
    new = NewChoice(
        comparison_id=comparison_id, preferred=preferred, strength=strength, harmful=harmful, channel=channel, at=now
    )
    [result] = record_choices(connection, [new], source=source)
    if isinstance(result, Exception):
        raise result
    return result


def count_signals(connection: sa.Connection) -> int:
    """Signals that the gateway ever stored."""
    return connection.execute(sa.select(sa.func.count()).select_from(signals)).scalar_one()

"""Signals: what was said of single completions, and the idempotency keys under which it was said.

Promises: a signal and its outbox row commit together, one signal per app and idempotency key for ever. Functions take
a connection inside a transaction of the caller's. Words (edits, comments) are in the event alone. Does not know whether
the completion was ever served.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass
from typing import Literal

import msgspec
import sqlalchemy as sa

from feedback.choices import add_to_outbox
from feedback.database import insert_or_ignore, metadata
from feedback.errors import ConflictingSignal
from feedback.events import Signal, new_event

signals = sa.Table(
    "signals",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),  # also the id of its event
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("completion_id", sa.Text, nullable=False, index=True),
    sa.Column("checkpoint", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("thumb", sa.Text),
    sa.Column("rating", sa.Double),
    sa.Column("scale", sa.Integer),
    sa.Column("success", sa.Boolean),
    sa.Column("score", sa.Double),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.UniqueConstraint("app", "idempotency_key"),  # rows without a key never collide
)


@dataclass(frozen=True)
class StoredSignal:
    """The signal that stands, and whether this call made it."""

    status: Literal["created", "replayed"]
    id: str
    completion_id: str
    created_at: float


def fingerprint_signal(completion_id: str, said: object) -> str:
    """Equal for requests that say the same of the same completion, however their JSON is laid out."""
    return hashlib.sha256(msgspec.json.encode((completion_id, said), order="deterministic")).hexdigest()


def record_signal(
    connection: sa.Connection,
    signal: Signal,
    *,
    fingerprint: str,
    idempotency_key: str | None = None,
    source: str = "prefloop/gateway",
) -> StoredSignal:
    """Store a signal and its outbox row; the same key and fingerprint again replays the stored one.

    Raises ConflictingSignal if the app used the key for something else.
    """
    signal_id = f"sig_{uuid.uuid4().hex}"
    row = {
        "id": signal_id,
        "app": signal.app,
        "user": signal.user,
        "completion_id": signal.completion_id,
        "checkpoint": signal.checkpoint,
        "kind": signal.kind,
        "thumb": signal.thumb,
        "rating": signal.rating,
        "scale": signal.scale,
        "success": None if signal.outcome is None else signal.outcome.success,
        "score": None if signal.outcome is None else signal.outcome.score,
        "idempotency_key": idempotency_key,
        "fingerprint": fingerprint,
        "created_at": signal.created_at,
    }
    if insert_or_ignore(connection, signals, row):
        add_to_outbox(connection, new_event(signal, source=source, now=signal.created_at, event_id=signal_id))
        return StoredSignal("created", signal_id, signal.completion_id, signal.created_at)
    assert idempotency_key is not None
    stored = find_signal(connection, signal.app, idempotency_key, fingerprint)
    assert stored is not None
    return stored


def find_signal(connection: sa.Connection, app: str, idempotency_key: str, fingerprint: str) -> StoredSignal | None:
    """What an app said under this key, None if nothing. Raises ConflictingSignal if that was something else."""
    query = sa.select(signals).where(signals.c.app == app, signals.c.idempotency_key == idempotency_key)
    row = connection.execute(query).first()
    if row is None:
        return None
    if row.fingerprint != fingerprint:
        raise ConflictingSignal
    return StoredSignal("replayed", row.id, row.completion_id, row.created_at)

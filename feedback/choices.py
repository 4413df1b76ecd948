"""Comparisons that were shown, the choices made of them, and the outbox on the way to the log.

Promises: a choice and its outbox row commit together, one choice per comparison for ever. Functions take a connection
inside a transaction of the caller's. Does not verify tokens.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import sqlalchemy as sa

from feedback.database import insert_or_ignore, metadata
from feedback.errors import ConflictingChoice, ExpiredComparison, UnknownComparison
from feedback.events import PREFERRED, Choice, Comparison, Event, Preferred, encode_event, new_event
from feedback.outbox import OutboxRow, declare_outbox, delete_rows, load_rows

comparisons = sa.Table(
    "comparisons",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("rollout", sa.Text),
    sa.Column("canary_first", sa.Boolean),  # of a duel: the canary's answer was shown first
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),  # events.Comparison as JSON
    sa.Index("comparisons_by_rollout", "rollout", "asked", "created_at"),
)

choices = sa.Table(
    "choices",
    metadata,
    sa.Column("comparison_id", sa.Text, sa.ForeignKey("comparisons.id"), primary_key=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("preferred", sa.Text, nullable=False),
    sa.Column("strength", sa.Double),
    sa.Column("harmful", sa.Boolean, nullable=False),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("chosen_at", sa.Double, nullable=False),
)

outbox = declare_outbox("outbox", metadata)


@dataclass(frozen=True)
class StoredChoice:
    """The choice that stands, and whether this call made it."""

    status: Literal["created", "replayed"]
    choice: Choice


@dataclass(frozen=True, kw_only=True)
class DuelRow:
    """A duel from the canary's side: outcome +1 won, 0 tie or both bad, -1 lost.

    chosen_at is None, and outcome 0, where nothing was said: not answered (yet), or skipped.
    """

    comparison_id: str
    user: str
    asked_at: float
    chosen_at: float | None
    outcome: int
    both_bad: bool
    harmful: bool
    canary_first: bool


def store_comparison(connection: sa.Connection, comparison: Comparison) -> None:
    """Store a comparison before its token leaves the house. Storing the same id again changes nothing."""
    is_duel = {comparison.first.arm, comparison.second.arm} == {"stable", "canary"}
    insert_or_ignore(
        connection,
        comparisons,
        {
            "id": comparison.id,
            "policy": comparison.policy,
            "app": comparison.app,
            "user": comparison.user,
            "asked": comparison.asked,
            "rollout": comparison.rollout,
            "canary_first": comparison.first.arm == "canary" if is_duel else None,
            "created_at": comparison.created_at,
            "expires_at": comparison.expires_at,
            "body": msgspec.json.encode(comparison),
        },
    )


def load_comparison(connection: sa.Connection, comparison_id: str) -> Comparison:
    """Raises UnknownComparison if the id was never shown."""
    body = connection.execute(sa.select(comparisons.c.body).where(comparisons.c.id == comparison_id)).scalar()
    if body is None:
        raise UnknownComparison(comparison_id)
    return msgspec.json.decode(body, type=Comparison)


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
    if preferred not in PREFERRED:
        raise ValueError(f"preferred must be one of {', '.join(PREFERRED)}")
    if strength is not None and not math.isfinite(strength):
        raise ValueError("strength must be a finite number")
    comparison = load_comparison(connection, comparison_id)
    stored = _load_choice(connection, comparison)
    if stored is None and now > comparison.expires_at:
        raise ExpiredComparison(comparison_id)
    choice = Choice(
        comparison=comparison,
        preferred=preferred,
        strength=strength,
        harmful=harmful,
        seconds_to_decide=max(0.0, now - comparison.created_at),
        channel=channel,
        chosen_at=now,
    )
    if stored is None and _insert_choice(connection, choice, source):
        return StoredChoice("created", choice)
    stored = stored or _load_choice(connection, comparison)  # another process was faster
    assert stored is not None
    if (stored.preferred, stored.strength, stored.harmful) != (preferred, strength, harmful):
        raise ConflictingChoice(comparison_id)
    return StoredChoice("replayed", stored)


def _load_choice(connection: sa.Connection, comparison: Comparison) -> Choice | None:
    row = connection.execute(sa.select(choices).where(choices.c.comparison_id == comparison.id)).first()
    if row is None:
        return None
    return Choice(
        comparison=comparison,
        preferred=row.preferred,
        strength=row.strength,
        harmful=row.harmful,
        seconds_to_decide=max(0.0, row.chosen_at - comparison.created_at),
        channel=row.channel,
        chosen_at=row.chosen_at,
    )


def _insert_choice(connection: sa.Connection, choice: Choice, source: str) -> bool:
    event = new_event(choice, source=source, now=choice.chosen_at, event_id=uuid.uuid4().hex)
    row = {
        "comparison_id": choice.comparison.id,
        "event_id": event.id,
        "preferred": choice.preferred,
        "strength": choice.strength,
        "harmful": choice.harmful,
        "channel": choice.channel,
        "chosen_at": choice.chosen_at,
    }
    if not insert_or_ignore(connection, choices, row):
        return False
    add_to_outbox(connection, event)
    return True


def add_to_outbox(connection: sa.Connection, event: Event) -> None:
    """Have the relay move an event to the log, once this transaction has committed."""
    headers, value = encode_event(event)
    connection.execute(
        sa.insert(outbox).values(
            event_id=event.id,
            key=event.key.encode(),
            headers=msgspec.msgpack.encode(headers),
            value=value,
            created_at=event.time,
        )
    )


def pending_outbox(connection: sa.Connection, limit: int) -> list[OutboxRow]:
    """The oldest rows that wait for the log."""
    return load_rows(connection, outbox, limit)


def delete_outbox(connection: sa.Connection, ids: Sequence[int]) -> None:
    """Forget rows that the log holds."""
    delete_rows(connection, outbox, ids)


def count_outbox(connection: sa.Connection) -> int:
    """Rows that wait for the log."""
    return connection.execute(sa.select(sa.func.count()).select_from(outbox)).scalar_one()


def count_feedback(connection: sa.Connection) -> tuple[int, int]:
    """(comparisons, choices) ever stored."""
    num_comparisons = connection.execute(sa.select(sa.func.count()).select_from(comparisons)).scalar_one()
    return num_comparisons, connection.execute(sa.select(sa.func.count()).select_from(choices)).scalar_one()


def load_duels(connection: sa.Connection, rollout_id: str) -> list[DuelRow]:
    """The rollout's duels in the order in which they were asked, decided or not."""
    is_decided = (choices.c.comparison_id == comparisons.c.id) & (choices.c.preferred != "skip")
    query = (
        sa.select(
            comparisons.c.id,
            comparisons.c.user,
            comparisons.c.created_at,
            comparisons.c.canary_first,
            choices.c.preferred,
            choices.c.harmful,
            choices.c.chosen_at,
        )
        .select_from(comparisons.outerjoin(choices, is_decided))
        .where(comparisons.c.rollout == rollout_id, comparisons.c.canary_first.is_not(None))
        .order_by(comparisons.c.created_at, comparisons.c.id)
    )
    return [
        DuelRow(
            comparison_id=row.id,
            user=row.user,
            asked_at=row.created_at,
            chosen_at=row.chosen_at,
            outcome=_judge_for_canary(row.preferred, row.canary_first),
            both_bad=row.preferred == "both_bad",
            harmful=bool(row.harmful),
            canary_first=row.canary_first,
        )
        for row in connection.execute(query)
    ]


def _judge_for_canary(preferred: str | None, canary_first: bool) -> int:
    if preferred not in ("first", "second"):
        return 0
    return 1 if (preferred == "first") == canary_first else -1

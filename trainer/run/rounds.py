"""When a round is due, and the record of rounds: each ends in a checkpoint or in a written reason why not.

A round that the trainer died in stays open and begins again under its number. The kind says how it trained: "dpo" is
the one there is. Training itself is in dpo.py; the learner joins the two.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from feedback.inbox import metadata
from trainer.settings import TrainerSection

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Column("outcome", sa.String),  # "published", "stopped"
    sa.Column("reason", sa.String, nullable=False, default=""),
    sa.Column("checkpoint", sa.String),
    sa.Column("last_preference_id", sa.Integer, nullable=False),  # the newest preference the round could see
    sa.Column("trigger_choice_at", sa.Float, nullable=False),
    sa.Column("metrics", sa.String, nullable=False, default="{}"),
)
TIES_FACTOR = 2  # so many times the decisive preferences make a round due when most are ties


@dataclass(frozen=True)
class NewPreferences:
    """What came since the last finished round. total counts ties; last_id is that of the newest preference."""

    total: int
    decisive: int
    last_id: int


@dataclass(frozen=True)
class OpenRound:
    """A round that has begun. attempts: how often, this time included."""

    number: int
    kind: str
    attempts: int
    last_preference_id: int
    trigger_choice_at: float


def explain_round(new: NewPreferences, since_s: float, settings: TrainerSection) -> tuple[bool, str]:
    """Whether a round is due, and why or why not. since_s: seconds since the last round ended, or the trainer began."""
    required = settings.round_every_preferences
    if new.decisive >= required:
        return True, f"{new.decisive} new decisive preferences"
    if new.total >= TIES_FACTOR * required:
        return True, f"{new.total} new preferences, {new.decisive} of them decisive"
    minutes = settings.round_every_minutes
    if minutes and since_s >= 60 * minutes and new.decisive >= settings.round_min_preferences:
        return True, f"{since_s / 60:.0f} minutes and {new.decisive} new decisive preferences since the last round"
    return False, f"{new.decisive} of {required} new decisive preferences"


def find_open_round(connection: sa.Connection) -> OpenRound | None:
    """The round that has begun and not ended: at most one."""
    row = connection.execute(sa.select(rounds).where(rounds.c.finished_at.is_(None))).first()
    if row is None:
        return None
    return OpenRound(row.number, row.kind, row.attempts, row.last_preference_id, row.trigger_choice_at)


def begin_round(
    connection: sa.Connection, *, kind: str, last_preference_id: int, trigger_choice_at: float, now: float
) -> OpenRound:
    """Open the next round, or the one that is open again: it keeps its number and what triggered it."""
    found = find_open_round(connection)
    if found is not None:
        again = OpenRound(found.number, kind, found.attempts + 1, last_preference_id, found.trigger_choice_at)
        connection.execute(
            sa.update(rounds)
            .where(rounds.c.number == again.number)
            .values(kind=kind, attempts=again.attempts, last_preference_id=last_preference_id, started_at=now)
        )
        return again
    number = (connection.execute(sa.select(sa.func.max(rounds.c.number))).scalar() or 0) + 1
    opened = OpenRound(number, kind, 1, last_preference_id, trigger_choice_at)
    connection.execute(
        sa.insert(rounds).values(
            number=number,
            kind=kind,
            attempts=1,
            started_at=now,
            last_preference_id=last_preference_id,
            trigger_choice_at=trigger_choice_at,
        )
    )
    return opened


def release_round(connection: sa.Connection, number: int) -> None:
    """A clean stop in the middle of a round does not count as an attempt."""
    connection.execute(sa.update(rounds).where(rounds.c.number == number).values(attempts=rounds.c.attempts - 1))


def finish_round(
    connection: sa.Connection,
    number: int,
    *,
    reason: str,
    checkpoint: str | None,
    metrics: Mapping[str, float],
    now: float,
) -> None:
    """Close a round: published if it has a checkpoint, else stopped. A closed round stays as it is.

    Metrics that are not finite are left out: they are no JSON.
    """
    connection.execute(
        sa.update(rounds)
        .where(rounds.c.number == number, rounds.c.finished_at.is_(None))
        .values(
            finished_at=now,
            outcome="published" if checkpoint else "stopped",
            reason=reason,
            checkpoint=checkpoint,
            metrics=json.dumps({name: value for name, value in metrics.items() if math.isfinite(value)}),
        )
    )


def last_finished(connection: sa.Connection) -> tuple[int, float | None]:
    """(newest preference that a finished round could see, when the last one ended); (0, None) before the first."""
    finished = rounds.c.finished_at.is_not(None)
    row = connection.execute(
        sa.select(sa.func.max(rounds.c.last_preference_id), sa.func.max(rounds.c.finished_at)).where(finished)
    ).one()
    return int(row[0] or 0), row[1]


def count_published(connection: sa.Connection) -> int:
    query = sa.select(sa.func.count()).select_from(rounds).where(rounds.c.outcome == "published")
    return int(connection.execute(query).scalar_one())


def list_checkpoint_numbers(connection: sa.Connection) -> list[int]:
    """Numbers of the checkpoints that rounds published, whether or not their directories are still there."""
    ids = connection.execute(sa.select(rounds.c.checkpoint).where(rounds.c.checkpoint.is_not(None))).scalars()
    return [int(name.split("-")[1]) for name in ids]


def list_finished(connection: sa.Connection, limit: int = 50) -> list[dict[str, Any]]:
    """The newest finished rounds, oldest first, as /status shows them."""
    query = sa.select(rounds).where(rounds.c.finished_at.is_not(None)).order_by(rounds.c.number.desc()).limit(limit)
    shown = ("number", "kind", "started_at", "finished_at", "outcome", "reason", "checkpoint", "trigger_choice_at")
    return [
        {**{name: row[name] for name in shown}, "metrics": json.loads(row["metrics"])}
        for row in reversed(connection.execute(query).mappings().all())
    ]

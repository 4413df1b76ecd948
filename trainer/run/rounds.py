"""The record of rounds: each ends in a checkpoint or in a written reason why not.

A round that the trainer died in stays open and goes on under its number, with what it was opened with. Says nothing of
when a round is due (schedule.py) nor of what it trains on (plan.py).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from feedback.inbox import metadata

rounds = sa.Table(
    "rounds",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String, nullable=False),  # "dpo", "ppo", "sft"
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Column("outcome", sa.String),  # "published", "stopped"
    sa.Column("reason", sa.String, nullable=False, default=""),
    sa.Column("checkpoint", sa.String),
    sa.Column("last_preference_id", sa.Integer, nullable=False),  # the newest preference the round could see
    sa.Column("trigger_choice_at", sa.Float, nullable=False),
    sa.Column("metrics", sa.String, nullable=False, default="{}"),
    sa.Column("start", sa.Text, nullable=False, server_default="stable"),  # "stable", "base", "reference"
    sa.Column("num_left", sa.Integer, nullable=False, server_default="0"),  # new decisive rows it did not take
    sa.Column("details", sa.Text, nullable=False, server_default="{}"),  # JSON: see Ending.details
    sa.Column("was_rejected", sa.Boolean, nullable=False, server_default=sa.false()),  # trained, and the gate said no
)

plans = sa.Table(
    "round_plans",  # of the round that is open: see plan.Plan
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("plan", sa.Text, nullable=False),
)


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
    started_at: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a round ended.

    details: what it was made of and how long each phase took, as JSON can hold it. last_preference_id: the newest row
    that its plan could see; None if there was no plan. was_rejected: it trained, and the offline gate said no. Whoever closes
    the round puts in what its plan and its verdict say.
    """

    reason: str
    checkpoint: str | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    start: str = "stable"
    num_left: int = 0
    last_preference_id: int | None = None
    was_rejected: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Past:
    """What the finished rounds leave to the next one's schedule.

    num_rounds: how many there are. last_preference_id: the newest preference that one of them could see. num_left: new
    decisive rows that the last one did not take, had it been published. published_since_restart: rounds published since the
    last that began from the base. has_chain_failed: the gate stopped a DPO round that went on from stable, and no other DPO round
    has been judged, or has begun from the base, since.
    """

    last_preference_id: int = 0
    finished_at: float | None = None
    num_left: int = 0
    published_since_restart: int = 0
    has_chain_failed: bool = False
    num_rounds: int = 0


def find_open_round(connection: sa.Connection) -> OpenRound | None:
    """The round that has begun and not ended: at most one."""
    row = connection.execute(sa.select(rounds).where(rounds.c.finished_at.is_(None))).first()
    if row is None:
        return None
    return OpenRound(row.number, row.kind, row.attempts, row.last_preference_id, row.trigger_choice_at, row.started_at)


def begin_round(
    connection: sa.Connection, *, kind: str, last_preference_id: int, trigger_choice_at: float, now: float
) -> OpenRound:
    """Open the next round, or the one that is open again: that one keeps its number, its kind and what it could see."""
    found = find_open_round(connection)
    if found is not None:
        again = sa.update(rounds).where(rounds.c.number == found.number).values(attempts=found.attempts + 1)
        connection.execute(again)
        return OpenRound(
            found.number,
            found.kind,
            found.attempts + 1,
            found.last_preference_id,
            found.trigger_choice_at,
            found.started_at,
        )
    number = (connection.execute(sa.select(sa.func.max(rounds.c.number))).scalar() or 0) + 1
    opened = OpenRound(number, kind, 1, last_preference_id, trigger_choice_at, now)
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


def store_plan(connection: sa.Connection, number: int, plan: str) -> None:
    """Keep the plan of an open round, in place of the one before: another trainer may go on with it."""
    connection.execute(sa.delete(plans))
    connection.execute(sa.insert(plans).values(number=number, plan=plan))


def load_plan(connection: sa.Connection, number: int) -> str | None:
    """The plan of an open round; None if it has none, or began under a release that kept none here."""
    found: str | None = connection.execute(sa.select(plans.c.plan).where(plans.c.number == number)).scalar()
    return found


def release_round(connection: sa.Connection, number: int) -> None:
    """A clean stop in the middle of a round does not count as an attempt."""
    connection.execute(sa.update(rounds).where(rounds.c.number == number).values(attempts=rounds.c.attempts - 1))


def finish_round(connection: sa.Connection, number: int, ending: Ending, now: float) -> None:
    """Close a round: published if it has a checkpoint, else stopped. A closed round stays as it is.

    Metrics that are not finite are left out: they are no JSON.
    """
    values: dict[str, Any] = {
        "finished_at": now,
        "outcome": "published" if ending.checkpoint else "stopped",
        "reason": ending.reason,
        "checkpoint": ending.checkpoint,
        "metrics": json.dumps(keep_finite(ending.metrics)),
        "start": ending.start,
        "num_left": ending.num_left,
        "was_rejected": ending.was_rejected,
        "details": json.dumps(ending.details),
    }
    if ending.last_preference_id is not None:
        values["last_preference_id"] = ending.last_preference_id
    is_open = sa.and_(rounds.c.number == number, rounds.c.finished_at.is_(None))
    connection.execute(sa.update(rounds).where(is_open).values(values))
    connection.execute(sa.delete(plans).where(plans.c.number == number))


def keep_finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """The figures that JSON can hold."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def read_past(connection: sa.Connection) -> Past:
    """What the finished rounds leave to the next one."""
    names = (
        "kind",
        "outcome",
        "num_left",
        "start",
        "was_rejected",
        "last_preference_id",
        "finished_at",
    )  # not the figures: it is asked all the time
    finished = sa.select(*(rounds.c[name] for name in names)).where(rounds.c.finished_at.is_not(None))
    past, last_left = Past(), 0
    for row in connection.execute(finished.order_by(rounds.c.number)):
        is_published = row.outcome == "published"
        # A round that leaves as many as the one before began where that one did: its checkpoint was not promoted.
        has_less = is_published and (not last_left or row.num_left < last_left)
        last_left = row.num_left if is_published else last_left
        # A round that ended without a verdict, having gone on from stable, says nothing of the chain.
        says_of_chain = row.kind == "dpo" and (is_published or row.was_rejected or row.start != "stable")
        since = 0 if row.start != "stable" else past.published_since_restart
        past = Past(
            last_preference_id=max(past.last_preference_id, row.last_preference_id),
            finished_at=row.finished_at,
            num_left=row.num_left if has_less else 0,
            published_since_restart=since + is_published,
            has_chain_failed=row.was_rejected and row.start == "stable" if says_of_chain else past.has_chain_failed,
            num_rounds=past.num_rounds + 1,
        )
    return past


def count_beside(connection: sa.Connection, parent: str) -> int:
    """How many finished rounds were made to be judged beside this checkpoint."""
    query = sa.select(rounds.c.details).where(rounds.c.finished_at.is_not(None))
    return sum(json.loads(details).get("parent") == parent for details in connection.execute(query).scalars())


def find_last_finished(connection: sa.Connection) -> int:
    """The number of the newest round that ended, 0 before the first."""
    query = sa.select(sa.func.max(rounds.c.number)).where(rounds.c.finished_at.is_not(None))
    return int(connection.execute(query).scalar() or 0)


def count_seen_demonstrations(connection: sa.Connection) -> int:
    """How many demonstrations there were for the newest SFT round that ended, 0 before the first."""
    query = sa.select(rounds.c.details).where(rounds.c.finished_at.is_not(None), rounds.c.kind == "sft")
    newest = connection.execute(query.order_by(rounds.c.number.desc()).limit(1)).scalar()
    return int(json.loads(newest or "{}").get("num_available", 0))


def list_checkpoint_numbers(connection: sa.Connection) -> list[int]:
    """Numbers of the checkpoints that rounds published, whether or not their directories are still there."""
    ids = connection.execute(sa.select(rounds.c.checkpoint).where(rounds.c.checkpoint.is_not(None))).scalars()
    return [int(name.split("-")[1]) for name in ids]


def list_finished(connection: sa.Connection, limit: int = 50) -> list[dict[str, Any]]:
    """The newest finished rounds, oldest first, as /status shows them."""
    query = sa.select(rounds).where(rounds.c.finished_at.is_not(None)).order_by(rounds.c.number.desc()).limit(limit)
    shown = (
        "number", "kind", "started_at", "finished_at", "outcome", "reason", "checkpoint", "trigger_choice_at", "start",
    )  # fmt: skip
    listed = []
    for row in reversed(connection.execute(query).mappings().all()):
        details = json.loads(row["details"])
        listed.append(
            {
                **{name: row[name] for name in shown},
                "metrics": json.loads(row["metrics"]),
                "phases": details.get("phases", {}),  # seconds by phase
                "reward_parts": details.get("reward_parts", []),
                "rung": details.get("rung"),  # where its checkpoint stands on the ladder
            }
        )
    return listed


def find_metrics_of(connection: sa.Connection, checkpoint: str) -> dict[str, float] | None:
    """What was measured of a checkpoint in its round; None for one that no round here published."""
    found = connection.execute(sa.select(rounds.c.metrics).where(rounds.c.checkpoint == checkpoint)).scalar()
    if found is None:
        return None
    metrics: dict[str, float] = json.loads(found)
    return metrics


def list_rungs(connection: sa.Connection) -> list[dict[str, Any]]:
    """Where the published checkpoints stand on the ladder, oldest first; those that were measured."""
    query = sa.select(rounds.c.details).where(rounds.c.outcome == "published").order_by(rounds.c.number)
    found = [json.loads(details).get("rung") for details in connection.execute(query).scalars()]
    return [rung for rung in found if rung]


def find_round(connection: sa.Connection, number: int) -> dict[str, Any] | None:
    """All that is on record of a round, open or finished."""
    row = connection.execute(sa.select(rounds).where(rounds.c.number == number)).mappings().first()
    if row is None:
        return None
    return {**row, "metrics": json.loads(row["metrics"]), "details": json.loads(row["details"])}

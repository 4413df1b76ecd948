"""Rollouts, the events that they went through, and what each decision rested on."""

from dataclasses import asdict, replace

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    LargeBinary,
    String,
    Table,
    Text,
    bindparam,
    func,
    insert,
    select,
    update,
)

from feedback.database import metadata
from gateway.tables.columns import select_rows
from gateway.tables.rows import DecisionRow, EventRow, RolloutRow
from gateway.tables.serving import StaleController, advance_serving, get_serving

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("policy", String(200), nullable=False),
    Column("checkpoint", String(200), nullable=False),
    Column("stable", String(200), nullable=False),
    Column("aa", Boolean, nullable=False),
    Column("phase", String(30), nullable=False, index=True),
    Column("analysis", String(30), nullable=False),
    Column("reason", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("step_started_at", Float, nullable=False),
    Column("weight", Float, nullable=False),
    Column("duel_share", Float, nullable=False),
    Column("salt", String(64), nullable=False),
    Column("generation", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("phase_started_at", Float, nullable=False),
    Column("finished_at", Float),
    Column("resume_phase", String(30), nullable=False),
    Column("split_waived", Boolean, nullable=False),  # for the release before, which knows no other waiver
    Column("waived", Text, nullable=False, server_default=""),
    Column("decision_digest", String(64), nullable=False),
    Column("settings", Text, nullable=False),
    Column("pair", String(64), nullable=False, server_default="", index=True),
    Column("num_tries", Integer, nullable=False, server_default="1"),
    Column("note", Text, nullable=False, server_default=""),
)

rollout_events = Table(
    "rollout_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("rollout", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("from_phase", String(30), nullable=False),
    Column("to_phase", String(30), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("reason", Text, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("note", Text, nullable=False, server_default=""),
)

decisions = Table(
    "decisions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("rollout", String(64), nullable=False, index=True),
    Column("at", Float, nullable=False),
    Column("verdict", String(40), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("data", Text, nullable=False),
    Column("inputs", LargeBinary),  # none in rows of older gateways, which cannot be replayed
)


FINISHED = ("Healthy", "Degraded")


# Built once: what runs at every look costs less to run than to build.
_ROLLOUTS = select_rows(RolloutRow, rollouts)
_ACTIVE_ROLLOUTS = _ROLLOUTS.where(
    rollouts.c.policy == bindparam("policy"), rollouts.c.phase.not_in(FINISHED)
).order_by(rollouts.c.created_at)


def add_rollout(conn: Connection, row: RolloutRow) -> None:
    conn.execute(insert(rollouts).values(**_store(row)))
    add_event(conn, row, "", "controller", row.reason, row.created_at)


def _store(row: RolloutRow) -> dict[str, object]:
    return {**asdict(row), "split_waived": "split" in row.waived.split()}


def get_rollout(conn: Connection, rollout: str) -> RolloutRow | None:
    row = conn.execute(_ROLLOUTS.where(rollouts.c.id == rollout)).first()
    return None if row is None else RolloutRow(*row)


def list_rollouts(conn: Connection, limit: int = 100) -> list[RolloutRow]:
    """Return the newest rollouts first."""
    query = _ROLLOUTS.order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc()).limit(limit)
    return [RolloutRow(*row) for row in conn.execute(query)]


def count_rollouts(conn: Connection) -> int:
    return conn.execute(select(func.count()).select_from(rollouts)).scalar_one()


def list_tries(conn: Connection, row: RolloutRow) -> list[str]:
    """The rollouts whose evidence this one goes on with, oldest first, itself included."""
    if row.num_tries == 1:
        return [row.id]
    query = select(rollouts.c.id).where(rollouts.c.pair == row.pair, rollouts.c.num_tries <= row.num_tries)
    return [str(name) for name in conn.execute(query.order_by(rollouts.c.num_tries)).scalars()]


def find_tries(conn: Connection, row: RolloutRow) -> list[RolloutRow]:
    """Earlier rollouts of the same checkpoints under the same settings, oldest first."""
    query = _ROLLOUTS.where(
        rollouts.c.checkpoint == row.checkpoint, rollouts.c.stable == row.stable, rollouts.c.settings == row.settings
    ).order_by(rollouts.c.created_at, rollouts.c.id)
    return [RolloutRow(*found) for found in conn.execute(query)]


def find_promotion(conn: Connection, policy: str, checkpoint: str) -> RolloutRow | None:
    """The newest rollout that made this checkpoint stable."""
    query = _ROLLOUTS.where(
        rollouts.c.policy == policy, rollouts.c.checkpoint == checkpoint, rollouts.c.phase == "Healthy"
    ).order_by(rollouts.c.created_at.desc(), rollouts.c.id.desc())
    row = conn.execute(query).first()
    return None if row is None else RolloutRow(*row)


def active_rollout(conn: Connection, policy: str) -> RolloutRow | None:
    """Return the one rollout that has not finished."""
    row = conn.execute(_ACTIVE_ROLLOUTS, {"policy": policy}).first()
    return None if row is None else RolloutRow(*row)


def move_rollout(
    conn: Connection, old: RolloutRow, new: RolloutRow, *, fence: int | None, actor: str, reason: str, now: float,
    note: str = "", stable: str | None = None,
) -> RolloutRow:  # fmt: skip
    """Replace `old` by `new` under the next generation and append the event, all or nothing.

    Raises StaleController if the row is not at `old.generation` or the fence has moved.
    """
    generation = advance_serving(conn, old.policy, get_serving(conn, old.policy).generation, fence, stable)
    new = replace(new, generation=generation)
    where = (rollouts.c.id == old.id, rollouts.c.generation == old.generation)
    if conn.execute(update(rollouts).where(*where).values(**_store(new))).rowcount != 1:
        raise StaleController(f"rollout {old.id} is past generation {old.generation}")
    add_event(conn, new, old.phase, actor, reason, now, note)
    return new


def add_event(
    conn: Connection, row: RolloutRow, old_phase: str, actor: str, reason: str, now: float, note: str = ""
) -> None:
    """Append a line to the audit trail: the row came from `old_phase` to where it is."""
    values = {"from_phase": old_phase, "to_phase": row.phase, "actor": actor, "reason": reason, "note": note}
    conn.execute(insert(rollout_events).values(rollout=row.id, at=now, generation=row.generation, **values))


def list_events(conn: Connection, rollout: str) -> list[EventRow]:
    query = select(rollout_events).where(rollout_events.c.rollout == rollout).order_by(rollout_events.c.id)
    return [EventRow(r.at, r.from_phase, r.to_phase, r.actor, r.reason, r.note) for r in conn.execute(query)]


def add_decision(conn: Connection, rollout: str, at: float, decision: DecisionRow) -> None:
    conn.execute(insert(decisions).values(rollout=rollout, at=at, **asdict(decision)))


def list_decisions(conn: Connection, rollout: str) -> list[tuple[float, DecisionRow]]:
    """Every decision of a rollout with its time, oldest first."""
    query = select(decisions).where(decisions.c.rollout == rollout).order_by(decisions.c.id)
    return [(r.at, DecisionRow(r.verdict, r.digest, r.data, r.inputs)) for r in conn.execute(query)]

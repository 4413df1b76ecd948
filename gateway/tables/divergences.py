"""How far the canary's answers were from stable's, one of each user."""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import Column, Connection, Float, String, Table, bindparam, select

from feedback.database import insert_missing, metadata
from gateway.tables.rows import Divergence

divergences = Table(
    "rollout_divergences",
    metadata,
    Column("rollout", String(64), primary_key=True),
    Column("user", String(128), primary_key=True),
    Column("at", Float, nullable=False),
    Column("nats", Float, nullable=False),
)
_MEASURED = (
    select(divergences.c.user, divergences.c.nats)
    .where(divergences.c.rollout.in_(bindparam("rollouts", expanding=True)))
    .order_by(divergences.c.at, divergences.c.user)
)


def add_divergences(conn: Connection, rows: Sequence[Divergence]) -> None:
    """Store measurements; a user's first is left alone."""
    insert_missing(conn, divergences, [asdict(row) for row in sorted(rows, key=lambda row: row.user)])


def load_divergences(conn: Connection, rollouts: Sequence[str]) -> list[tuple[str, float]]:
    """(user, nats a token) of these rollouts, oldest first."""
    return [(user, nats) for user, nats in conn.execute(_MEASURED, {"rollouts": list(rollouts)})]

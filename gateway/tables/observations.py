"""Users' first requests of a rollout, as the guardrails judge them."""

from collections.abc import Sequence
from dataclasses import asdict, fields

from sqlalchemy import Boolean, Column, Connection, Float, String, Table, bindparam, case, func, select

from feedback.database import insert_missing, metadata
from gateway.tables.rows import Observation

observations = Table(
    "rollout_observations",
    metadata,
    Column("rollout", String(64), primary_key=True),
    Column("user", String(128), primary_key=True),
    Column("arm", String(10), primary_key=True),
    Column("paired", Boolean, nullable=False),
    Column("weight", Float, nullable=False),
    Column("error", Boolean, nullable=False),
    Column("truncated", Boolean, nullable=False),
    Column("refused", Boolean, nullable=False),
    Column("latency_first_s", Float),
    Column("at", Float, nullable=False),
    Column("answered", String(10)),  # empty in rows of older gateways, which say no more than whether it was a duel
)

_OBSERVATIONS = (
    select(
        *(
            func.coalesce(observations.c.answered, case((observations.c.paired, "duel"), else_="single"))
            if field.name == "answered"
            else observations.c[field.name]
            for field in fields(Observation)
        )
    )
    .where(observations.c.rollout == bindparam("rollout"))
    .order_by(observations.c.at, observations.c.user, observations.c.arm)
)


def add_observations(conn: Connection, rows: Sequence[Observation]) -> None:
    """Store first requests; one that is already there is left alone."""
    rows = sorted(rows, key=lambda row: (row.user, row.arm))  # gateways that store the same ones wait in one order
    insert_missing(conn, observations, [{**asdict(row), "paired": row.answered == "duel"} for row in rows])


def load_observations(conn: Connection, rollout: str) -> list[Observation]:
    """Return a rollout's first requests, oldest first."""
    return [Observation(*row) for row in conn.execute(_OBSERVATIONS, {"rollout": rollout})]

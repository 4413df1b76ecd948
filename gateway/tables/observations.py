"""Users' first requests of a rollout, as the guardrails judge them."""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

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
    Column("latency_token_s", Float),
    Column("length", Float),
    Column("unseen", String(40)),  # "truncated refused": what no sensor saw, and is false above
    Column("answered", String(10)),  # empty in rows of older gateways, which say no more than whether it was a duel
)

_MAY_BE_UNSEEN = ("truncated", "refused")
_OBSERVATIONS = (
    select(
        *(
            func.coalesce(observations.c.answered, case((observations.c.paired, "duel"), else_="single"))
            if field.name == "answered"
            else observations.c[field.name]
            for field in fields(Observation)
        ),
        func.coalesce(observations.c.unseen, ""),
    )
    .where(observations.c.rollout.in_(bindparam("rollouts", expanding=True)))
    .order_by(observations.c.at, observations.c.user, observations.c.arm)
)


def add_observations(conn: Connection, rows: Sequence[Observation]) -> None:
    """Store first requests; one that is already there is left alone."""
    rows = sorted(rows, key=lambda row: (row.user, row.arm))  # gateways that store the same ones wait in one order
    insert_missing(conn, observations, [_store(row) for row in rows])


def load_observations(conn: Connection, rollouts: Sequence[str]) -> list[Observation]:
    """Return the first requests of these rollouts, oldest first."""
    return [_restore(*row) for row in conn.execute(_OBSERVATIONS, {"rollouts": list(rollouts)})]


def _store(row: Observation) -> dict[str, object]:
    values = asdict(row)
    unseen = [name for name in _MAY_BE_UNSEEN if values[name] is None]
    return {**values, **dict.fromkeys(unseen, False), "unseen": " ".join(unseen), "paired": row.answered == "duel"}


def _restore(*columns: Any) -> Observation:
    row = Observation(*columns[:-1])
    unseen = columns[-1].split()
    return replace(
        row,
        truncated=None if "truncated" in unseen else row.truncated,
        refused=None if "refused" in unseen else row.refused,
    )

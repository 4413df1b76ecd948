"""Tables of records on their way to the log: written with the data they tell of, in one transaction.

A relay takes the rows in the order of their ids and deletes what the log holds. Does not talk to the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback.log.base import NewRecord


@dataclass(frozen=True)
class OutboxRow:
    """A record that waits for the log. created_at: epoch seconds."""

    id: int
    created_at: float
    record: NewRecord


@dataclass(frozen=True)
class Backlog:
    """What waits in an outbox: rows, and how long the oldest has waited."""

    num_rows: int
    oldest_age_s: float


def declare_outbox(name: str, metadata: sa.MetaData) -> sa.Table:
    """The table of an outbox on the metadata of the tables it is written with."""
    return sa.Table(
        name,
        metadata,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
        sa.Column("event_id", sa.Text, nullable=False, unique=True),
        sa.Column("key", sa.LargeBinary, nullable=False),
        sa.Column("headers", sa.LargeBinary, nullable=False),  # MessagePack
        sa.Column("value", sa.LargeBinary, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sqlite_autoincrement=True,  # never the id of a row that was deleted
    )


@cache
def _select_oldest(outbox: sa.Table) -> sa.Select[Any]:
    return sa.select(outbox).order_by(outbox.c.id).limit(sa.bindparam("limit")).with_for_update(skip_locked=True)


def load_rows(connection: sa.Connection, outbox: sa.Table, limit: int) -> list[OutboxRow]:
    """The oldest rows that wait. With PostgreSQL they stay locked until the transaction ends; others skip them."""
    return [
        OutboxRow(
            id=row.id,
            created_at=row.created_at,
            record=NewRecord(
                key=row.key, value=row.value, headers=msgspec.msgpack.decode(row.headers, type=dict[str, bytes])
            ),
        )
        for row in connection.execute(_select_oldest(outbox), {"limit": limit})
    ]


def delete_rows(connection: sa.Connection, outbox: sa.Table, ids: Sequence[int]) -> None:
    """Forget rows that the log holds."""
    connection.execute(sa.delete(outbox).where(outbox.c.id.in_(ids)))


def measure_backlog(connection: sa.Connection, outbox: sa.Table, now: float) -> Backlog:
    """What waits for the log. now: epoch seconds."""
    num_rows, oldest = connection.execute(sa.select(sa.func.count(), sa.func.min(outbox.c.created_at))).one()
    return Backlog(num_rows, 0.0 if oldest is None else max(0.0, now - oldest))

"""The dead letters: records that could not be read, looked at, tried again after an upgrade, or set aside for a reason.

Promises: a letter leaves the table only in the transaction that stores what it says. Discarding marks it and keeps its
bytes. Functions take a connection inside a transaction of the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from feedback import inbox
from feedback.errors import EventError
from feedback.inbox import dead_letters, discarded_letters
from feedback.log.base import Record

_PLACE = ("topic", "partition", "record_offset")
_IS_SAME = sa.and_(*(dead_letters.c[name] == discarded_letters.c[name] for name in _PLACE))


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """One record that could not be read, why, and why it was discarded, if it was."""

    record: Record
    error: str
    reason: str
    buried_at: float
    discarded_at: float | None
    discard_reason: str | None


@dataclass(frozen=True, kw_only=True)
class Retried:
    """What became of one letter: `problem` says why it still cannot be read, "" if it was stored."""

    letter: DeadLetter
    problem: str


def load_dead_letters(connection: sa.Connection, *, with_discarded: bool = False) -> list[DeadLetter]:
    """The letters in the order of their places in the log."""
    query = _select().order_by(*(dead_letters.c[name] for name in _PLACE))
    if not with_discarded:
        query = query.where(discarded_letters.c.discarded_at.is_(None))
    return [_read(row) for row in connection.execute(query)]


def find_dead_letter(connection: sa.Connection, topic: str, partition: int, offset: int) -> DeadLetter | None:
    """The letter of one place, discarded or not."""
    row = connection.execute(_select().where(*_at(dead_letters, topic, partition, offset))).first()
    return None if row is None else _read(row)


def retry_dead_letters(connection: sa.Connection, letters: Sequence[DeadLetter]) -> list[Retried]:
    """Decode letters again; those that can be read are stored as events and are dead letters no more."""
    return [Retried(letter=letter, problem=_retry(connection, letter.record)) for letter in letters]


def discard_dead_letters(connection: sa.Connection, letters: Sequence[DeadLetter], reason: str, now: float) -> int:
    """Mark letters as not worth another try; return how many were not marked yet. They stay, with their bytes."""
    if not reason.strip():
        raise ValueError("a reason is needed")
    fresh = [letter for letter in letters if letter.discarded_at is None]
    for letter in fresh:
        place = {"topic": letter.record.topic, "partition": letter.record.partition}
        row = {**place, "record_offset": letter.record.offset, "reason": reason, "discarded_at": now}
        connection.execute(sa.insert(discarded_letters).values(**row))
    return len(fresh)


def _retry(connection: sa.Connection, record: Record) -> str:
    try:
        inbox.store_alone(connection, record)
    except EventError as error:
        return f"{type(error).__name__}: {error}"
    for table in (discarded_letters, dead_letters):
        connection.execute(sa.delete(table).where(*_at(table, record.topic, record.partition, record.offset)))
    return ""


def _select() -> sa.Select[tuple[object, ...]]:
    return sa.select(
        dead_letters, discarded_letters.c.reason.label("discard_reason"), discarded_letters.c.discarded_at
    ).select_from(dead_letters.outerjoin(discarded_letters, _IS_SAME))


def _at(table: sa.Table, topic: str, partition: int, offset: int) -> list[sa.ColumnElement[bool]]:
    return [table.c.topic == topic, table.c.partition == partition, table.c.record_offset == offset]


def _read(row: sa.Row[tuple[object, ...]]) -> DeadLetter:
    return DeadLetter(
        record=Record(
            topic=row.topic,
            partition=row.partition,
            offset=row.record_offset,
            key=row.key,
            value=row.value,
            headers=msgspec.msgpack.decode(row.headers, type=dict[str, bytes]),
            timestamp_ms=int(row.buried_at * 1000),
        ),
        error=row.error,
        reason=row.reason,
        buried_at=row.buried_at,
        discarded_at=row.discarded_at,
        discard_reason=row.discard_reason,
    )

"""Rebuilds the trainer's store from the log alone, into an empty database or into one that lost rows.

Promises: rows that are there stay as they are (insert or ignore by event id), and an offset moves only over records
that were stored, so the trainer goes on where the replay ended. Each batch is one transaction: a replay that was cut off
is run again. What the trainer did with the rows (rounds, uses) is not in the log and does not come back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby, islice

import sqlalchemy as sa

from feedback import inbox
from feedback.database import sqlite_path, write_transaction
from feedback.errors import ReplayError
from feedback.log.base import Log, Record
from feedback.scan import find_ends, scan

_BATCH = 500


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay did. The counts are of rows that were not there before; offsets are where the store stands now."""

    num_records: int
    num_preferences: int
    num_signals: int
    num_dead_letters: int
    offsets: dict[int, int]


def replay(
    log: Log,
    topic: str,
    database: sa.Engine,
    starts: Mapping[int, int],
    on_batch: Callable[[int], None] = lambda num_records: None,
) -> Replayed:
    """Store every record from `starts` up to the log's present end. The tables must be there.

    An empty store notes what lies before `starts` as a gap. Raises ReplayError if a partition of the store stands
    below its start, as the records in between would be skipped.
    """
    ends = find_ends(log, topic)
    with write_transaction(database) as connection:
        _prepare(connection, topic, starts)
        before = _count(connection)
    num_records = 0
    records = scan(log, topic, starts, ends)
    while batch := list(islice(records, _BATCH)):
        with write_transaction(database) as connection:
            _store(connection, batch)
        num_records += len(batch)
        on_batch(num_records)
    with database.connect() as connection:
        preferences, signals, letters = (now - then for now, then in zip(_count(connection), before, strict=True))
        offsets = inbox.load_offsets(connection, topic)
    return Replayed(
        num_records=num_records,
        num_preferences=preferences,
        num_signals=signals,
        num_dead_letters=letters,
        offsets=offsets,
    )


def is_open_elsewhere(url: str) -> bool:
    """Whether another process has this SQLite database open, as a running trainer has; False for other databases."""
    if not url.startswith("sqlite") or not sqlite_path(url).exists():
        return False
    from pysqlite3 import dbapi2

    connection = dbapi2.connect(str(sqlite_path(url)), timeout=0, isolation_level=None)
    try:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")  # a WAL database gives this to a lone connection only
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("ROLLBACK")
    except dbapi2.OperationalError as error:
        if "locked" not in str(error):
            raise
        return True
    finally:
        connection.close()
    return False


def _prepare(connection: sa.Connection, topic: str, starts: Mapping[int, int]) -> None:
    for partition, start in starts.items():
        stands_at = inbox.load_offset(connection, topic, partition)
        if start > stands_at > 0:
            raise ReplayError(
                f"{topic}[{partition}]: the store stands at offset {stands_at}, so a replay from {start} would skip"
                f" what lies between. Start at {stands_at} or below."
            )
        if start > stands_at:
            inbox.record_gap(connection, topic, partition, start)


def _store(connection: sa.Connection, batch: list[Record]) -> None:
    ordered = sorted(batch, key=lambda record: (record.partition, record.offset))
    for partition, group in groupby(ordered, key=lambda record: record.partition):
        records = list(group)
        next_offset = inbox.load_offset(connection, records[0].topic, partition)
        for record in records:
            if record.offset < next_offset:
                inbox.restore(connection, record)
        ahead = [record for record in records if record.offset >= next_offset]
        inbox.consume(connection, ahead, read_from=next_offset, one_by_one=True)


def _count(connection: sa.Connection) -> tuple[int, int, int]:
    return (
        inbox.count_preferences(connection),
        inbox.count_signals(connection),
        inbox.count_dead_letters(connection),
    )

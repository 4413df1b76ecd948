"""Stores records of the log as preferences, signals and demonstrations, with the offsets they came from.

Promises: data and offset move in one transaction, so a crash repeats a batch and never loses or doubles a row. What
cannot be read becomes a dead letter. Everything here can be rebuilt by reading the log again. Keeps skips and signals
too; what may be trained on is the trainer's concern.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback.database import insert_missing, insert_or_ignore, split_parameters
from feedback.errors import EventError, PoisonEvent, PositionMismatch
from feedback.events import decode_event
from feedback.inbox.new_rows import NewRow, build_row
from feedback.inbox.splits import Place, place_nowhere
from feedback.inbox.tables import (
    dead_letter_outbox,
    dead_letters,
    demonstrations,
    gaps,
    offsets,
    preferences,
    signals,
)
from feedback.log.base import Record
from feedback.outages import describe_error, is_of_data, make_storable


def load_offset(connection: sa.Connection, topic: str, partition: int) -> int:
    """The next offset to read; 0 for a partition never read. Locks its row where rows can be locked."""
    query = sa.select(offsets.c.next).where(offsets.c.topic == topic, offsets.c.partition == partition)
    return connection.execute(query.with_for_update()).scalar() or 0


def load_offsets(connection: sa.Connection, topic: str) -> dict[int, int]:
    """Next offsets by partition: a checkpoint's watermark."""
    query = sa.select(offsets.c.partition, offsets.c.next).where(offsets.c.topic == topic)
    return {row.partition: row.next for row in connection.execute(query)}


def consume(
    connection: sa.Connection,
    records: Iterable[Record],
    *,
    read_from: int | None = None,
    one_by_one: bool = False,
    place: Place = place_nowhere,
) -> int:
    """Store a batch and move the offsets; return how many preferences are new. Run it in one transaction.

    read_from: the offset that was asked of the log, if the records are of one partition and may start behind a hole.
    Records below the stored offset are skipped. Raises PositionMismatch if the batch starts above it: seek, and read
    again. What cannot be read becomes a dead letter. one_by_one: slower, and whatever the database has against one record
    makes a dead letter of it alone. place: chooses the new rows' clusters and splits.
    """
    num_new = 0
    ordered = sorted(records, key=lambda record: (record.topic, record.partition, record.offset))
    for (topic, partition), group in groupby(ordered, key=lambda record: (record.topic, record.partition)):
        batch = list(group)
        next_offset = _lock_offset(connection, topic, partition)
        start = batch[0].offset if read_from is None else read_from
        if start > next_offset:
            raise PositionMismatch(topic, partition, start, next_offset)
        fresh = [record for record in batch if record.offset >= next_offset]
        if one_by_one:
            num_new += sum(_take(connection, record, place) for record in fresh)
        else:
            num_new += _take_all(connection, fresh, place)
        if fresh:
            _store_offset(connection, topic, partition, fresh[-1].offset + 1)
    return num_new


def record_gap(connection: sa.Connection, topic: str, partition: int, begin: int) -> int:
    """Retention took records before they were read: note it, go on at `begin`; return how many are lost."""
    next_offset = _lock_offset(connection, topic, partition)
    if begin <= next_offset:
        return 0
    place = {"topic": topic, "partition": partition, "from_offset": next_offset}
    insert_or_ignore(connection, gaps, {**place, "to_offset": begin, "found_at": time.time()})
    _store_offset(connection, topic, partition, begin)
    return begin - next_offset


def restore(connection: sa.Connection, record: Record) -> bool:
    """Store what a record says unless it is there, and leave the offsets alone; return whether a preference is new.

    For records that the offset has passed already. What cannot be read becomes a dead letter.
    """
    return _take(connection, record, place_nowhere)


def store_alone(connection: sa.Connection, record: Record, place: Place = place_nowhere) -> bool:
    """Store what a record says unless it is there; return whether a preference is new.

    Raises EventError if it cannot be read, or holds what no database stores; the transaction goes on.
    """
    row = _read_row(record)
    try:
        with connection.begin_nested():
            return row is not None and _store_rows(connection, [row], place) > 0
    except Exception as error:  # any kind of value that nobody thought of
        if isinstance(error, EventError) or not is_of_data(error):
            raise
        raise PoisonEvent(describe_error(error)) from error


def _take(connection: sa.Connection, record: Record, place: Place) -> bool:
    try:
        return store_alone(connection, record, place)
    except EventError as error:
        _store_dead_letter(connection, record, error)
        return False


def _take_all(connection: sa.Connection, records: Sequence[Record], place: Place) -> int:
    """Store a batch by a few statements; return how many preferences are new."""
    rows = []
    for record in records:
        try:
            row = _read_row(record)
        except EventError as error:
            _store_dead_letter(connection, record, error)
        else:
            if row is not None:
                rows.append(row)
    return _store_rows(connection, rows, place)


def _read_row(record: Record) -> NewRow | None:
    """The row that a record stands for, None if it is kept nowhere. Raises EventError."""
    event = decode_event(record.headers, record.value)
    try:
        return build_row(event)
    except (ValueError, OverflowError, RecursionError) as error:
        raise PoisonEvent(describe_error(error)) from error


def _store_rows(connection: sa.Connection, rows: Sequence[NewRow], place: Place) -> int:
    """Place and insert the rows that are not there; return how many of them are preferences."""
    new = _leave_out_stored(connection, rows)
    if not new:
        return 0
    by_table: dict[str, list[dict[str, Any]]] = {}
    for row, placement in zip(new, place(connection, [row.arrival for row in new]), strict=True):
        values = {**row.values, "cluster": placement.cluster, "split": placement.split}
        by_table.setdefault(row.table.name, []).append(values)
    for table in (preferences, signals, demonstrations):
        insert_missing(connection, table, by_table.get(table.name, []))
    return len(by_table.get(preferences.name, []))


def _leave_out_stored(connection: sa.Connection, rows: Sequence[NewRow]) -> list[NewRow]:
    """Each event once, and none that is stored: a repeat is not placed again."""
    stored: set[tuple[str, str]] = set()
    for table in (preferences, signals, demonstrations):
        ids = [row.values["event_id"] for row in rows if row.table is table]
        for some in split_parameters(ids):
            query = sa.select(table.c.event_id).where(table.c.event_id.in_(some))
            stored.update((table.name, event_id) for event_id in connection.execute(query).scalars())
    new = []
    for row in rows:
        name = (row.table.name, row.values["event_id"])
        if name not in stored:
            stored.add(name)
            new.append(row)
    return new


def _store_dead_letter(connection: sa.Connection, record: Record, error: EventError) -> None:
    row = {
        "topic": record.topic,
        "partition": record.partition,
        "record_offset": record.offset,
        "error": type(error).__name__,
        "reason": make_storable(str(error)),
        "key": record.key,
        "headers": msgspec.msgpack.encode(dict(record.headers)),
        "value": record.value,
        "buried_at": time.time(),
    }
    if not insert_or_ignore(connection, dead_letters, row):
        return
    place = f"{record.topic}/{record.partition}/{record.offset}"
    headers = {
        **record.headers,
        "prefloop_error": type(error).__name__.encode(),
        "prefloop_reason": make_storable(str(error)).encode(),
        "prefloop_place": place.encode(),  # topic/partition/offset
    }
    letter = {
        "event_id": place,
        "key": record.key,
        "headers": msgspec.msgpack.encode(headers),
        "value": record.value,
        "created_at": row["buried_at"],
    }
    insert_or_ignore(connection, dead_letter_outbox, letter)  # it waits there still, if its row was lost


def _lock_offset(connection: sa.Connection, topic: str, partition: int) -> int:
    # A row that is not there cannot be locked, and two readers would both believe to be the first.
    insert_or_ignore(connection, offsets, {"topic": topic, "partition": partition, "next": 0})
    return load_offset(connection, topic, partition)


def _store_offset(connection: sa.Connection, topic: str, partition: int, next_offset: int) -> None:
    query = sa.update(offsets).where(offsets.c.topic == topic, offsets.c.partition == partition)
    connection.execute(query.values(next=next_offset))

"""Stores records of the log as preferences and signals, with the offsets they came from.

Promises: data and offset move in one transaction, so a crash repeats a batch and never loses or doubles a row. What
cannot be read becomes a dead letter. Everything here can be rebuilt by reading the log again. Keeps skips and signals
too; what may be trained on is the trainer's concern.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import groupby
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback.database import insert_or_ignore
from feedback.errors import EventError, PoisonEvent, PositionMismatch
from feedback.events import Choice, Event, Signal, decode_event
from feedback.inbox.splits import choose_split, key_prompt
from feedback.inbox.tables import dead_letter_outbox, dead_letters, gaps, offsets, preferences, signals
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
    connection: sa.Connection, records: Iterable[Record], *, read_from: int | None = None, one_by_one: bool = False
) -> int:
    """Store a batch and move the offsets; return how many preferences are new. Run it in one transaction.

    read_from: the offset that was asked of the log, if the records are of one partition and may start behind a hole.
    Records below the stored offset are skipped. Raises PositionMismatch if the batch starts above it: seek, and read
    again. What cannot be read becomes a dead letter. one_by_one: slower, and whatever the database has against one record
    makes a dead letter of it alone.
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
        num_new += sum(_take(connection, record, one_by_one) for record in fresh)
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
    return _take(connection, record, one_by_one=True)


def store(connection: sa.Connection, record: Record) -> bool:
    """Store what a record says unless it is there; return whether a preference is new.

    Raises EventError if it cannot be read, or holds what no database stores; the transaction goes on.
    """
    event = decode_event(record.headers, record.value)
    try:
        row = _build_row(event)
    except (ValueError, OverflowError, RecursionError) as error:
        raise PoisonEvent(describe_error(error)) from error
    if row is None:
        return False
    is_new = insert_or_ignore(connection, preferences if isinstance(event.data, Choice) else signals, row)
    return is_new and isinstance(event.data, Choice)


def store_alone(connection: sa.Connection, record: Record) -> bool:
    """`store` in a savepoint, so that whatever a database has against the record is raised as EventError too."""
    try:
        with connection.begin_nested():
            return store(connection, record)
    except Exception as error:  # any kind of value that nobody thought of
        if isinstance(error, EventError) or not is_of_data(error):
            raise
        raise PoisonEvent(describe_error(error)) from error


def _take(connection: sa.Connection, record: Record, one_by_one: bool) -> bool:
    try:
        return store_alone(connection, record) if one_by_one else store(connection, record)
    except EventError as error:
        _store_dead_letter(connection, record, error)
        return False


def _build_row(event: Event) -> dict[str, Any] | None:
    """The row of a choice or a signal, None for other events. Raises ValueError for what no database stores."""
    match event.data:
        case Choice() as choice:
            row = _build_preference(event.id, choice)
        case Signal() as signal:
            row = _build_signal(event.id, signal)
        case _:
            return None
    for name, value in row.items():
        if isinstance(value, str) and (value.encode() and "\0" in value):  # encode: raises for lone surrogates
            raise ValueError(f"`{name}` holds NUL, which PostgreSQL does not store")
    return row


def _build_preference(event_id: str, choice: Choice) -> dict[str, Any]:
    comparison = choice.comparison
    prompt_key = key_prompt(comparison.messages)
    return {
        "event_id": event_id,
        "comparison_id": comparison.id,
        "policy": comparison.policy,
        "app": comparison.app,
        "user": comparison.user,
        "asked": comparison.asked,
        "prompt_key": prompt_key,
        "preferred": choice.preferred,
        "chosen_at": choice.chosen_at,
        "split": choose_split(comparison.user, prompt_key),
        "used_as_new": 0,
        "used_as_replay": 0,
        "choice_json": msgspec.json.encode(choice),
    }


def _build_signal(event_id: str, signal: Signal) -> dict[str, Any]:
    prompt_key = "" if signal.messages is None else key_prompt(signal.messages)
    return {
        "event_id": event_id,
        "completion_id": signal.completion_id,
        "policy": signal.policy,
        "app": signal.app,
        "user": signal.user,
        "checkpoint": signal.checkpoint,
        "kind": signal.kind,
        "prompt_key": prompt_key,
        "split": choose_split(signal.user, prompt_key),
        "created_at": signal.created_at,
        "signal_json": msgspec.json.encode(signal),
    }


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

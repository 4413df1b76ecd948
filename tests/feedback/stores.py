"""Logs and trainer's stores for tests that compare what is in them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback import inbox
from feedback.database import open_database, write_transaction
from feedback.errors import PositionMismatch
from feedback.events import Event, encode_event
from feedback.log import Log, NewRecord, Record
from feedback.log.sqlite import SqliteLog
from feedback.schema import migrate

TOPIC = "t"
_OWN = {"id", "buried_at", "found_at"}  # of a store, not of what it holds


@contextmanager
def opened_log(path: Path) -> Any:
    log = SqliteLog(f"sqlite:{path}")
    yield log
    log.close()


@contextmanager
def opened_store(path: Path) -> Any:
    engine = open_database(f"sqlite:{path}")
    migrate(engine, "trainer")
    yield engine
    engine.dispose()


def make_new(event: Event, **headers: bytes) -> NewRecord:
    """The record of an event, with headers of the test's own."""
    given, value = encode_event(event)
    return NewRecord(key=event.key.encode(), value=value, headers={**given, **headers})


def read_all(log: Log, topic: str = TOPIC) -> list[Record]:
    return [record for partition in log.partitions(topic) for record in log.read(topic, partition, 0, 10**6, 0.0)]


def consume_all(log: Log, store: sa.Engine, topic: str = TOPIC, max_records: int = 7) -> None:
    """As the trainer reads: a batch of every partition in turn, each in one transaction."""
    num_records = 1
    while num_records:
        num_records = 0
        for partition in log.partitions(topic):
            with write_transaction(store) as connection:
                offset = inbox.load_offset(connection, topic, partition)
                records = log.read(topic, partition, offset, max_records, 0.0)
                inbox.consume(connection, records, read_from=offset)
            num_records += len(records)


def try_consume(store: sa.Engine, records: Iterable[Record]) -> bool:
    """Whether the store took the batch."""
    try:
        with write_transaction(store) as connection:
            inbox.consume(connection, records)
    except PositionMismatch:
        return False
    return True


def dump(store: sa.Engine, *tables: sa.Table) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of the tables (of all that the log fills, if none is named), without what is the store's own."""
    found = {}
    with store.connect() as connection:
        for table in tables or (inbox.preferences, inbox.signals, inbox.dead_letters, inbox.offsets, inbox.gaps):
            columns = [column for column in table.columns if column.name not in _OWN]
            rows = connection.execute(sa.select(*columns).order_by(*columns[:3]))
            found[table.name] = [
                tuple(_decode(column.name, row[i]) for i, column in enumerate(columns)) for row in rows
            ]
    return found


def _decode(column: str, value: Any) -> Any:
    """The order of keys in an object of JSON says nothing, in what nobody could store either."""
    if column.endswith("_json"):
        return msgspec.json.decode(value)
    with suppress(ValueError, RecursionError):
        return msgspec.json.decode(value) if column == "value" else value
    return value

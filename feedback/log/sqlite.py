"""The embedded log: one SQLite file with Kafka's semantics, for one machine without services.

Promises what `Log` promises; several processes may share the file. A topic is created by its first append; before
that it is shown as it will be created. Records are kept until `delete_before`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from feedback.database import create_tables, insert_or_ignore, open_database, write_transaction
from feedback.errors import LogUnavailable, OffsetOutOfRange
from feedback.log.base import NUM_PARTITIONS, Membership, NewRecord, Record, choose_partition
from feedback.log.sqlite_member import LEASE_S, SqliteMembership
from feedback.log.sqlite_member import metadata as members_metadata

T = TypeVar("T")

POLL_S = 0.05  # readers in other processes learn of new records by looking

_metadata = sa.MetaData()

_partitions = sa.Table(
    "log_partitions",
    _metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("begin_offset", sa.BigInteger, nullable=False),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)

_records = sa.Table(
    "log_records",
    _metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("record_offset", sa.BigInteger, primary_key=True),
    sa.Column("timestamp_ms", sa.BigInteger, nullable=False),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("headers", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

_groups = sa.Table(
    "log_groups",
    _metadata,
    sa.Column("group_name", sa.Text, primary_key=True),
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)


class SqliteLog:
    """A `Log` in the file of a `sqlite:PATH` URL."""

    def __init__(self, url: str, *, num_partitions: int = NUM_PARTITIONS) -> None:
        self._num_partitions = num_partitions
        self._engine = open_database(url)
        create_tables(self._engine, _metadata)
        create_tables(self._engine, members_metadata)
        self._members: list[SqliteMembership] = []

    def append(self, topic: str, records: Sequence[NewRecord]) -> None:
        """Append all in one transaction."""
        self._write(lambda connection: self._append(connection, topic, records))

    def partitions(self, topic: str) -> list[int]:
        """The topic's partitions, ascending."""
        query = sa.select(_partitions.c.partition).where(_partitions.c.topic == topic).order_by(_partitions.c.partition)
        found = self._read(lambda connection: list(connection.execute(query).scalars()))
        return found or list(range(self._num_partitions))

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """(begin, end) of one partition; (0, 0) before the first append."""
        return self._read(lambda connection: _bounds(connection, topic, partition))

    def read(self, topic: str, partition: int, offset: int, max_records: int, timeout_s: float) -> list[Record]:
        """Records from `offset` on; looks every POLL_S for the first until timeout_s is over."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = self._read(lambda connection: _fetch(connection, topic, partition, offset, max_records))
            left_s = deadline - time.monotonic()
            if found or left_s <= 0:
                return found
            time.sleep(min(POLL_S, left_s))

    def find_offset(self, topic: str, partition: int, timestamp_ms: int) -> int:
        """The first offset at or after timestamp_ms; the end if there is none."""
        return self._read(lambda connection: _find_offset(connection, topic, partition, timestamp_ms))

    def join(self, group: str, topic: str, *, lease_s: float = LEASE_S) -> Membership:
        """Take part in `group` by a lease that its `partitions` renews."""
        member = SqliteMembership(
            self._write, self._read, lambda: self.partitions(topic), group, topic, lease_s=lease_s
        )
        self._members.append(member)
        return member

    def commit(self, group: str, topic: str, next_offsets: Mapping[int, int]) -> None:
        """Publish how far `group` has read."""
        self._write(lambda connection: _commit(connection, group, topic, next_offsets))

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """What `group` last published, by partition."""
        query = sa.select(_groups.c.partition, _groups.c.next_offset).where(
            _groups.c.group_name == group, _groups.c.topic == topic
        )
        return self._read(lambda connection: {row.partition: row.next_offset for row in connection.execute(query)})

    def delete_before(self, topic: str, partition: int, offset: int) -> None:
        """Retention: forget the records below `offset`. In Kafka the broker does this, so it is no part of `Log`."""
        self._write(lambda connection: _delete_before(connection, topic, partition, offset))

    def close(self) -> None:
        """Leave the groups and close the connections."""
        members, self._members = self._members, []
        for member in members:
            member.leave()
        self._engine.dispose()

    def _append(self, connection: sa.Connection, topic: str, records: Sequence[NewRecord]) -> None:
        next_offsets = self._next_offsets(connection, topic)
        timestamp_ms = time.time_ns() // 1_000_000
        rows: list[dict[str, Any]] = []
        for record in records:
            partition = choose_partition(record.key, len(next_offsets))
            rows.append(
                {
                    "topic": topic,
                    "partition": partition,
                    "record_offset": next_offsets[partition],
                    "timestamp_ms": timestamp_ms,
                    "key": record.key,
                    "value": record.value,
                    "headers": msgspec.msgpack.encode(dict(record.headers)),
                }
            )
            next_offsets[partition] += 1
        if rows:
            connection.execute(sa.insert(_records), rows)
        for partition in sorted({row["partition"] for row in rows}):
            connection.execute(
                sa.update(_partitions)
                .where(_partitions.c.topic == topic, _partitions.c.partition == partition)
                .values(next_offset=next_offsets[partition])
            )

    def _next_offsets(self, connection: sa.Connection, topic: str) -> dict[int, int]:
        """The topic's next offsets by partition; creates the topic if it is new."""
        query = sa.select(_partitions.c.partition, _partitions.c.next_offset).where(_partitions.c.topic == topic)
        found = {row.partition: row.next_offset for row in connection.execute(query)}
        if not found:
            found = dict.fromkeys(range(self._num_partitions), 0)
            rows = [{"topic": topic, "partition": p, "begin_offset": 0, "next_offset": 0} for p in found]
            connection.execute(sa.insert(_partitions), rows)
        return found

    def _write(self, fn: Callable[[sa.Connection], None]) -> None:
        try:
            with write_transaction(self._engine) as connection:
                fn(connection)
        except DBAPIError as error:
            raise LogUnavailable(f"the log does not take records: {error.orig}") from error

    def _read(self, fn: Callable[[sa.Connection], T]) -> T:
        try:
            with self._engine.connect() as connection:
                return fn(connection)
        except DBAPIError as error:
            raise LogUnavailable(f"the log does not answer: {error.orig}") from error


def _bounds(connection: sa.Connection, topic: str, partition: int) -> tuple[int, int]:
    row = connection.execute(
        sa.select(_partitions.c.begin_offset, _partitions.c.next_offset).where(
            _partitions.c.topic == topic, _partitions.c.partition == partition
        )
    ).first()
    return (row.begin_offset, row.next_offset) if row else (0, 0)


def _fetch(connection: sa.Connection, topic: str, partition: int, offset: int, max_records: int) -> list[Record]:
    begin, end = _bounds(connection, topic, partition)
    if not begin <= offset <= end:
        raise OffsetOutOfRange(topic, partition, offset, begin, end)
    rows = connection.execute(
        sa.select(_records)
        .where(_records.c.topic == topic, _records.c.partition == partition, _records.c.record_offset >= offset)
        .order_by(_records.c.record_offset)
        .limit(max_records)
    )
    return [
        Record(
            topic=topic,
            partition=partition,
            offset=row.record_offset,
            timestamp_ms=row.timestamp_ms,
            key=row.key,
            value=row.value,
            headers=msgspec.msgpack.decode(row.headers, type=dict[str, bytes]),
        )
        for row in rows
    ]


def _find_offset(connection: sa.Connection, topic: str, partition: int, timestamp_ms: int) -> int:
    query = sa.select(sa.func.min(_records.c.record_offset)).where(
        _records.c.topic == topic, _records.c.partition == partition, _records.c.timestamp_ms >= timestamp_ms
    )
    found = connection.execute(query).scalar()
    return _bounds(connection, topic, partition)[1] if found is None else int(found)


def _commit(connection: sa.Connection, group: str, topic: str, next_offsets: Mapping[int, int]) -> None:
    for partition, next_offset in next_offsets.items():
        place = {"group_name": group, "topic": topic, "partition": partition}
        if not insert_or_ignore(connection, _groups, {**place, "next_offset": next_offset}):
            connection.execute(sa.update(_groups).filter_by(**place).values(next_offset=next_offset))


def _delete_before(connection: sa.Connection, topic: str, partition: int, offset: int) -> None:
    begin, end = _bounds(connection, topic, partition)
    offset = min(max(begin, offset), end)
    connection.execute(
        sa.delete(_records).where(
            _records.c.topic == topic, _records.c.partition == partition, _records.c.record_offset < offset
        )
    )
    connection.execute(
        sa.update(_partitions)
        .where(_partitions.c.topic == topic, _partitions.c.partition == partition)
        .values(begin_offset=offset)
    )

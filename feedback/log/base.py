"""The log between gateway and trainer, shaped by Kafka: topics of partitions, offsets, at-least-once appends.

Promises: `append` returns only when the records are durable; within a partition, records are read in the order in
which they were appended; equal keys share a partition. Repeats are possible: readers drop them by event id. Offsets
rise but may have holes. All calls block; callers use threads, and every thread may call.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

NUM_PARTITIONS = 4  # of a topic that the embedded log creates


@dataclass(frozen=True, kw_only=True)
class NewRecord:
    """A record to be appended. Its key chooses the partition."""

    key: bytes
    value: bytes
    headers: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Record(NewRecord):
    """A record with its place. timestamp_ms is the time of appending, epoch milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int


class Membership(Protocol):
    """One reader's part in a group that divides a topic's partitions among its members.

    Two members may own a partition for a moment: what is read is made right by the reader's own offset.
    """

    def partitions(self) -> list[int]:
        """The partitions that this reader owns now, ascending; call it often, it says that the reader lives.

        Raises LogUnavailable while the log does not answer.
        """

    def leave(self) -> None:
        """Give the partitions back at once. Idempotent; never raises."""


class Log(Protocol):
    """What both back ends do. Every method raises LogUnavailable while the log does not answer."""

    def append(self, topic: str, records: Sequence[NewRecord]) -> None:
        """Append all, and return when they are durable. If it raises, any of them may have been appended."""

    def partitions(self, topic: str) -> list[int]:
        """The topic's partitions, ascending."""

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """(begin, end): the first offset still kept, and the one that the next record will get."""

    def read(self, topic: str, partition: int, offset: int, max_records: int, timeout_s: float) -> list[Record]:
        """Records from `offset` on; at the end, waits up to timeout_s for the first, then returns [].

        The first may lie above `offset` if there are holes. Raises OffsetOutOfRange outside the bounds.
        """

    def find_offset(self, topic: str, partition: int, timestamp_ms: int) -> int:
        """The first offset appended at or after timestamp_ms (epoch milliseconds); the end if there is none."""

    def join(self, group: str, topic: str) -> Membership:
        """Become a reader in `group`."""

    def commit(self, group: str, topic: str, next_offsets: Mapping[int, int]) -> None:
        """Publish how far `group` has read, by partition, so that others can see its lag.

        Only for display: the truth is the reader's own database, where the offset moves with the data.
        """

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """What `group` last published, by partition; partitions never published are absent."""

    def close(self) -> None:
        """Give the resources back within seconds, whatever the log does. Idempotent; leaves the groups it joined."""


def choose_partition(key: bytes, num_partitions: int) -> int:
    """CRC-32 of the key, modulo the number of partitions: the same in both back ends."""
    return zlib.crc32(key) % num_partitions

"""Reads a topic as it lies in the log, all partitions at once, in the order in which records were appended.

For people and for rebuilding, not for the trainer's intake: it keeps no position. Order across partitions is that of
the records' times, so it is as good as the brokers' clocks. Repeats are not dropped.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Mapping

from feedback.errors import LogUnavailable
from feedback.log.base import Log, Record

_BATCH = 500
_WAIT_S = 15.0  # for records that must be there, as they lie below the end


def find_ends(log: Log, topic: str) -> dict[int, int]:
    """Where each partition ends now."""
    return {partition: log.bounds(topic, partition)[1] for partition in log.partitions(topic)}


def find_starts(log: Log, topic: str, *, offset: int = 0, since_s: float | None = None) -> dict[int, int]:
    """Where to begin in each partition: at `offset`, or at the first record appended at `since_s` (epoch) or later.

    Never outside of what the log still keeps.
    """
    starts = {}
    for partition in log.partitions(topic):
        begin, end = log.bounds(topic, partition)
        position = offset if since_s is None else log.find_offset(topic, partition, int(since_s * 1000))
        starts[partition] = min(max(begin, position), end)
    return starts


def find_last(log: Log, topic: str, num: int) -> dict[int, int]:
    """Where to begin so that the last `num` records of all partitions together are surely among those read."""
    return {
        partition: max(begin, end - num)
        for partition in log.partitions(topic)
        for begin, end in [log.bounds(topic, partition)]
    }


def scan(log: Log, topic: str, starts: Mapping[int, int], ends: Mapping[int, int]) -> Iterator[Record]:
    """Every record from `starts` up to `ends`, by the time of appending.

    Raises LogUnavailable if a partition does not give what lies below its end.
    """
    streams = [_read_range(log, topic, partition, starts[partition], ends[partition]) for partition in starts]
    return heapq.merge(*streams, key=lambda record: (record.timestamp_ms, record.partition, record.offset))


def follow(log: Log, topic: str, starts: Mapping[int, int], poll_s: float = 0.5) -> Iterator[Record]:
    """Every record from `starts` on, for ever; what comes in while nobody takes them is ordered by time."""
    positions = dict(starts)
    while True:
        ends = {partition: max(end, positions.get(partition, 0)) for partition, end in find_ends(log, topic).items()}
        positions = {partition: positions.get(partition, 0) for partition in ends}
        yield from scan(log, topic, positions, ends)
        if ends == positions:
            time.sleep(poll_s)
        positions = ends


def _read_range(log: Log, topic: str, partition: int, start: int, end: int) -> Iterator[Record]:
    position = start
    while position < end:
        records = log.read(topic, partition, position, _BATCH, _WAIT_S)
        if not records:
            raise LogUnavailable(f"{topic}[{partition}]: nothing came from offset {position} on, but it ends at {end}")
        for record in records:
            if record.offset >= end:
                return
            yield record
        position = records[-1].offset + 1

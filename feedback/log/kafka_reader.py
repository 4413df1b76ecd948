"""Reads one partition of Kafka from any offset, quickly if calls follow each other."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import LogTruncationError, NoOffsetForPartitionError, OffsetOutOfRangeError

from feedback.errors import LogUnavailable, OffsetOutOfRange
from feedback.log.base import Record
from feedback.log.kafka_clients import FAILURES, KafkaClients, call_within, close_consumer, describe

FETCH_BYTES = 4 << 20
LOST_PLACE = (OffsetOutOfRangeError, NoOffsetForPartitionError, LogTruncationError)


class KafkaReader:
    """One consumer, made by the first read, that fetches ahead. Reads of several threads follow each other."""

    def __init__(self, clients: KafkaClients, topic: str, partition: int) -> None:
        self._clients = clients
        self._place = TopicPartition(topic, partition)
        self._lock = threading.Lock()
        self._consumer: KafkaConsumer | None = None
        self._position = -1

    def read(
        self, offset: int, max_records: int, timeout_s: float, ask_bounds: Callable[[], tuple[int, int]]
    ) -> list[Record]:
        """Records from `offset` on; waits timeout_s at the end. Raises OffsetOutOfRange, LogUnavailable."""
        with self._lock:
            try:
                found = self._read(offset, max_records, timeout_s, ask_bounds)
            except FAILURES as error:
                self._drop()  # a consumer can die out of its poll; the next read makes another
                if isinstance(error, LOST_PLACE):
                    self._check(offset, ask_bounds())
                raise LogUnavailable(f"Kafka does not give records: {describe(error)}") from error
            except LogUnavailable:
                self._drop()
                raise
            if found:
                self._position = found[-1].offset + 1
            return found

    def close(self) -> threading.Thread | None:
        """Give the consumer back in the background. Does not wait for a read."""
        return self._drop()

    def _drop(self) -> threading.Thread | None:
        consumer, self._consumer = self._consumer, None
        return close_consumer(consumer)

    def _read(
        self, offset: int, max_records: int, timeout_s: float, ask_bounds: Callable[[], tuple[int, int]]
    ) -> list[Record]:
        consumer = self._consumer
        if consumer is None:
            consumer = self._consumer = self._clients.make_consumer(max_partition_fetch_bytes=FETCH_BYTES)
            consumer.assign([self._place])
            self._position = -1
        if offset != self._position:  # a seek throws away what was fetched ahead
            consumer.seek(self._place, offset)
            self._position = offset
        found = self._poll(consumer, max_records, 0.0)
        if found:
            return found
        end = self._ask_end(consumer)  # an empty poll does not tell the end from a broker that is down
        if offset > end:
            self._check(offset, ask_bounds())
        found = self._poll(consumer, max_records, self._clients.options.timeout_s if offset < end else timeout_s)
        if not found and offset < end:
            raise LogUnavailable(f"Kafka gave none of the records {offset} to {end - 1} of {self._place}")
        return found

    def _ask_end(self, consumer: KafkaConsumer) -> int:
        timeout_s = self._clients.options.timeout_s
        ask = partial(consumer.end_offsets, [self._place], timeout_ms=int(1000 * timeout_s))
        return int(call_within(timeout_s + 1, ask)[self._place])

    def _check(self, offset: int, bounds: tuple[int, int]) -> None:
        begin, end = bounds
        if not begin <= offset <= end:
            raise OffsetOutOfRange(self._place.topic, self._place.partition, offset, begin, end)

    def _poll(self, consumer: KafkaConsumer, max_records: int, timeout_s: float) -> list[Record]:
        limit_s = timeout_s + self._clients.options.timeout_s
        timeout_ms = int(1000 * timeout_s)
        found = call_within(limit_s, lambda: consumer.poll(timeout_ms=timeout_ms, max_records=max_records))
        return [_make_record(given) for given in found.get(self._place, ())]


def _make_record(given: Any) -> Record:
    return Record(
        topic=given.topic,
        partition=given.partition,
        offset=given.offset,
        timestamp_ms=given.timestamp,
        key=bytes(given.key or b""),
        value=bytes(given.value or b""),
        headers={name: bytes(value or b"") for name, value in given.headers},
    )

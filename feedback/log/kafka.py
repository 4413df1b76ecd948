"""The log in a Kafka cluster, for more than one machine.

Promises what `Log` promises. Opening never fails: a cluster that is down is noticed by the first call, which raises
LogUnavailable, and so does every call until it is back. Creates the topics it lacks. Does not use transactions: the
reader's offset moves with its data, in the reader's own database. Adding partitions to a topic moves keys: do it while
nothing waits in any outbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient, KafkaProducer, OffsetAndMetadata, TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import BrokerResponseError, KafkaError, NoError, TopicAlreadyExistsError, UnknownTopicOrPartitionError

from feedback.errors import LogUnavailable
from feedback.log.base import Membership, NewRecord, Record, choose_partition
from feedback.log.kafka_clients import (
    CLOSE_TIMEOUT_S,
    FAILURES,
    MAX_REQUEST_BYTES,
    KafkaClients,
    close_later,
    describe,
)
from feedback.log.kafka_member import KafkaMembership
from feedback.log.kafka_reader import KafkaReader
from feedback.log.options import LogOptions

MAX_IN_FLIGHT_RECORDS = 1000
MAX_IN_FLIGHT_BYTES = 8 << 20
PARTITIONS_MAX_AGE_S = 60.0  # after which a topic is asked again whether it has grown
SLICE_S = 0.2  # how long a wait may overlook that the log was closed


class KafkaLog:
    """A `Log` in the cluster of a `kafka://HOST:PORT[,HOST:PORT]` URL. Raises ValueError for another URL."""

    def __init__(self, url: str, options: LogOptions | None = None) -> None:
        scheme, _, servers = url.partition("://")
        if scheme != "kafka" or not servers.strip("/"):
            raise ValueError(f"a Kafka log's URL is kafka://HOST:PORT[,HOST:PORT], not {url!r}")
        self._options = options or LogOptions()
        self._clients = KafkaClients(servers.strip("/").split(","), self._options)
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._producer: KafkaProducer | None = None
        self._readers: dict[tuple[str, int], KafkaReader] = {}
        self._members: dict[tuple[str, str], KafkaMembership] = {}
        self._partitions: dict[str, tuple[float, list[int]]] = {}

    def append(self, topic: str, records: Sequence[NewRecord]) -> None:
        """Append all, at most 1,000 records and 8 MiB of them in flight; return when all replicas in sync hold them."""
        for chunk in _split(records):
            num_partitions = len(self.partitions(topic))
            producer = self._get_producer()
            deadline = time.monotonic() + self._options.timeout_s
            try:
                futures = [
                    producer.send(
                        topic,
                        key=record.key,
                        value=record.value,
                        headers=list(record.headers.items()),
                        partition=choose_partition(record.key, num_partitions),
                    )
                    for record in chunk
                ]
                for future in futures:
                    self._wait(future, deadline)
            except (*FAILURES, LogUnavailable) as error:
                self._drop_producer(producer)
                raise LogUnavailable(f"Kafka does not take records: {describe(error)}") from error

    def partitions(self, topic: str) -> list[int]:
        """The topic's partitions, ascending; makes the topic if there is none."""
        asked_at, known = self._partitions.get(topic, (0.0, []))
        if known and time.monotonic() < asked_at + PARTITIONS_MAX_AGE_S:
            return known
        found = self._ask_partitions(topic)
        deadline = time.monotonic() + self._options.timeout_s
        while not found:
            self._create_topic(topic)
            if time.monotonic() > deadline:
                raise LogUnavailable(f"Kafka's topic {topic} has partitions without a leader")
            time.sleep(0.05)
            found = self._ask_partitions(topic)
        self._partitions[topic] = (time.monotonic(), found)
        return found

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """(begin, end) of one partition."""
        self.partitions(topic)
        begin = self._find(topic, partition, OffsetSpec.EARLIEST)
        return begin, self._find(topic, partition, OffsetSpec.LATEST)

    def find_offset(self, topic: str, partition: int, timestamp_ms: int) -> int:
        """The first offset at or after timestamp_ms; the end if there is none."""
        begin, end = self.bounds(topic, partition)
        found = self._find(topic, partition, max(0, timestamp_ms))
        return max(begin, found) if found >= 0 else end

    def read(self, topic: str, partition: int, offset: int, max_records: int, timeout_s: float) -> list[Record]:
        """Records from `offset` on. Reading on from where the last call ended takes what was fetched ahead."""
        self.partitions(topic)
        with self._lock:
            reader = self._readers.get((topic, partition))
            if reader is None:
                reader = self._readers[topic, partition] = KafkaReader(self._clients, topic, partition)
        return reader.read(offset, max_records, timeout_s, lambda: self.bounds(topic, partition))

    def commit(self, group: str, topic: str, next_offsets: Mapping[int, int]) -> None:
        """Publish how far `group` has read: through this log's membership if there is one, else the group has none."""
        offsets = {TopicPartition(topic, p): OffsetAndMetadata(offset, "", -1) for p, offset in next_offsets.items()}
        member = self._members.get((group, topic))
        if member is not None:
            member.commit(offsets)
            return
        self._ask(lambda admin: _alter_offsets(admin, group, offsets))

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """What `group` last published, by partition."""
        places = [TopicPartition(topic, partition) for partition in self.partitions(topic)]
        found = self._ask(lambda admin: admin.list_group_offsets({group: places}))[group]
        return {place.partition: given.offset for place, given in found.items() if given.offset >= 0}

    def join(self, group: str, topic: str) -> Membership:
        """Take part in `group`. Joining itself happens in the membership's calls."""
        self.partitions(topic)  # a group over a topic that does not exist would own nothing
        with self._lock:
            member = self._members[group, topic] = KafkaMembership(self._clients, group, topic)
        return member

    def close(self) -> None:
        """Close the clients; what takes longer than 2 s is left to end by itself. Wakes a waiting `append`."""
        self._closed.set()
        with self._lock:
            parts: list[KafkaReader | KafkaMembership] = [*self._readers.values(), *self._members.values()]
            self._readers, self._members = {}, {}
            producer, self._producer = self._producer, None
        closing = [closer for part in parts if (closer := part.close()) is not None]
        if producer is not None:
            closing.append(close_later(producer, timeout={"timeout": 0}))
        self._clients.close()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        for thread in closing:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _ask(self, fn: Callable[[Any], Any]) -> Any:
        try:
            return self._clients.ask(fn)
        except BrokerResponseError as error:
            raise LogUnavailable(f"Kafka refuses: {describe(error)}") from error

    def _ask_partitions(self, topic: str) -> list[int]:
        """The partitions, if the topic exists and each has a leader; else []."""
        [found] = self._ask(lambda admin: admin.describe_topics([topic]))
        rows = found["partitions"]
        if found["error_code"] not in (NoError.errno, UnknownTopicOrPartitionError.errno):
            raise LogUnavailable(f"Kafka does not show topic {topic}: error {found['error_code']}")
        if any(row["leader_id"] < 0 for row in rows):
            return []
        return sorted(row["partition_index"] for row in rows)

    def _create_topic(self, topic: str) -> None:
        options = self._options
        configs = {"retention.ms": str(options.retention_ms), "max.message.bytes": str(MAX_REQUEST_BYTES)}
        configs |= {"retention.bytes": "-1", "cleanup.policy": "delete"}
        if options.min_insync_replicas:
            configs["min.insync.replicas"] = str(options.min_insync_replicas)
        new_topic = {
            "num_partitions": options.partitions,
            "replication_factor": options.replication_factor,
            "configs": configs,
        }
        try:
            self._clients.ask(lambda admin: admin.create_topics({topic: new_topic}))
        except TopicAlreadyExistsError:
            pass
        except BrokerResponseError as error:
            raise LogUnavailable(f"Kafka does not create topic {topic}: {describe(error)}") from error

    def _find(self, topic: str, partition: int, where: Any) -> int:
        place = TopicPartition(topic, partition)
        return int(self._ask(lambda admin: admin.list_partition_offsets({place: where}))[place].offset)

    def _get_producer(self) -> KafkaProducer:
        with self._lock:
            if self._closed.is_set():
                raise LogUnavailable("the log is closed")
            if self._producer is None:
                self._producer = self._clients.make_producer()
            return self._producer

    def _drop_producer(self, producer: KafkaProducer) -> None:
        with self._lock:
            if self._producer is producer:
                self._producer = None
        close_later(producer, timeout={"timeout": 0})

    def _wait(self, future: Any, deadline: float) -> None:
        while not future.is_done:
            if self._closed.is_set() or time.monotonic() > deadline:
                raise LogUnavailable("no acknowledgement" if not self._closed.is_set() else "the log is closed")
            try:
                future.get(timeout=SLICE_S)
            except KafkaError:
                if future.is_done:
                    raise
        if future.failed():
            raise future.exception


def _alter_offsets(admin: KafkaAdminClient, group: str, offsets: dict[Any, Any]) -> None:
    for error in admin.alter_group_offsets(group, offsets).values():
        if error is not NoError:
            raise error()  # some pass: a coordinator that is being elected


def _split(records: Sequence[NewRecord]) -> Iterator[list[NewRecord]]:
    """Chunks that may be in flight together, in order."""
    chunk: list[NewRecord] = []
    num_bytes = 0
    for record in records:
        size = len(record.key) + len(record.value)
        if chunk and (len(chunk) == MAX_IN_FLIGHT_RECORDS or num_bytes + size > MAX_IN_FLIGHT_BYTES):
            yield chunk
            chunk, num_bytes = [], 0
        chunk.append(record)
        num_bytes += size
    if chunk:
        yield chunk

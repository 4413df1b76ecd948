"""Membership in one of Kafka's consumer groups: who reads which partitions. Reading itself is the log's affair."""

from __future__ import annotations

import logging
import threading
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError

from feedback.errors import LogUnavailable
from feedback.log.kafka_clients import CLOSE_TIMEOUT_S, FAILURES, KafkaClients, call_within, close_consumer, describe

logger = logging.getLogger("feedback.log")

JOIN_SLICE_MS = 500  # of waiting for the others in one call
REBALANCING = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)


class KafkaMembership:
    """One member of `group`, made by the first call. Partitions may be taken from it at any time."""

    def __init__(self, clients: KafkaClients, group: str, topic: str) -> None:
        self._clients, self._group, self._topic = clients, group, topic
        self._lock = threading.Lock()
        self._consumer: KafkaConsumer | None = None

    def partitions(self) -> list[int]:
        """What this member owns now; [] while the group divides the partitions anew. Raises LogUnavailable."""
        with self._lock:
            try:
                return self._poll(self._get_consumer())
            except FAILURES as error:  # a consumer can die out of its poll: join anew
                self._drop()
                raise LogUnavailable(f"group {self._group}: {describe(error)}") from error

    def commit(self, offsets: dict[Any, Any]) -> None:
        """Publish offsets, or leave it to the next owner while the group divides the partitions anew."""
        with self._lock:
            if self._consumer is None:
                return
            consumer, timeout_s = self._consumer, self._clients.options.timeout_s
            try:
                call_within(timeout_s + 1, lambda: consumer.commit(offsets, timeout_ms=int(1000 * timeout_s)))
            except REBALANCING as error:
                logger.debug("group %s: offsets are not published: %s", self._group, describe(error))
            except FAILURES as error:
                self._drop()
                raise LogUnavailable(f"group {self._group}: {describe(error)}") from error

    def leave(self) -> None:
        """Leave, so that the others need not wait for the session to end. Waits 2 s at most. Idempotent."""
        closer = self.close()
        if closer is not None:
            closer.join(CLOSE_TIMEOUT_S)

    def close(self) -> threading.Thread | None:
        """Leave in the background."""
        with self._lock:
            return self._drop()

    def _drop(self) -> threading.Thread | None:
        consumer, self._consumer = self._consumer, None
        return close_consumer(consumer)

    def _get_consumer(self) -> KafkaConsumer:
        if self._consumer is None:
            session_ms = int(1000 * self._clients.options.session_timeout_s)
            self._consumer = self._clients.make_consumer(
                group_id=self._group,
                session_timeout_ms=session_ms,
                heartbeat_interval_ms=session_ms // 4,
                partition_assignment_strategy=[RoundRobinPartitionAssignor],
            )
            self._consumer.subscribe([self._topic], listener=_Pause(self._consumer))
        return self._consumer

    def _poll(self, consumer: KafkaConsumer) -> list[int]:
        limit_s = self._clients.options.timeout_s
        is_stable = bool(consumer.assignment()) and not consumer._coordinator.need_rejoin()
        call_within(limit_s, lambda: consumer.poll(timeout_ms=0 if is_stable else JOIN_SLICE_MS))
        if consumer._coordinator.need_rejoin():
            return []
        return sorted(place.partition for place in consumer.assignment())


class _Pause(ConsumerRebalanceListener):  # type: ignore[misc]
    """Keeps the member's consumer from fetching what another consumer reads."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing to save: the reader's offsets are in its own database."""

    def on_partitions_assigned(self, assigned: Any) -> None:
        for place in assigned:
            self._consumer.pause(place)
            self._consumer.seek(place, 0)  # a position, so that nobody asks for one; it is never read from

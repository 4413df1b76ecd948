"""Reads the log into the inbox, for ever: a round never stops it, and an error only makes it wait.

Each batch and its offset move in one transaction, so a crash, another reader of the group or a rebalance in the middle
of a batch repeats and never loses or doubles. What cannot be read goes to the inbox's dead letters; a database that is
down only pauses. Rows get the cluster of their prompt as they come, and those that others stored when the log is read to
its end. Does not interpret preferences.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from functools import partial

import sqlalchemy as sa

from feedback import inbox
from feedback.database import Writer
from feedback.errors import DatabaseError, LogUnavailable, OffsetOutOfRange, PositionMismatch
from feedback.faults import reach
from feedback.log.base import Log, Record
from feedback.outages import describe_error, is_of_data, log_failure
from trainer.run.intake.clusters import has_unplaced, place_rows, place_undecided
from trainer.run.status.metrics import Metrics

log = logging.getLogger("trainer.run.intake.consumer")

GROUP = "trainer"
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 15.0
IDLE_WAIT_S = 0.2  # how long an idle consumer waits before it looks again
MEASURE_EVERY_S = 1.0


class Consumer(threading.Thread):
    """One member of the group of readers, over the partitions it owns. open_log is called again after a failure.

    report(lag, error) is called after every look at the log. `stop` once.
    """

    def __init__(
        self,
        open_log: Callable[[], Log],
        topic: str,
        database: sa.Engine,
        writer: Writer,
        metrics: Metrics,
        max_records: int,
        report: Callable[[int | None, str], None],
    ) -> None:
        super().__init__(name="consumer", daemon=True)
        self._open_log, self._topic, self._database, self._writer = open_log, topic, database, writer
        self._metrics, self._max_records, self._report = metrics, max_records, report
        self._stopping = threading.Event()

    def stop(self) -> None:
        self._stopping.set()

    def run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                self._read_until_stopped()
            except Exception as error:  # the loop's edge: intake must survive whatever happens to log or database
                log_failure(log, "consumer", error)
                self._metrics.consumer_errors.inc()
                self._report(None, str(error))
                if time.monotonic() - started > MAX_BACKOFF_S:
                    backoff_s = FIRST_BACKOFF_S
                self._stopping.wait(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _read_until_stopped(self) -> None:
        source = self._open_log()
        try:
            member = source.join(GROUP, self._topic)
            lag, measured_at = None, 0.0
            while not self._stopping.is_set():
                owned = member.partitions()
                self._metrics.owned_partitions.set(len(owned))
                num_records = consume_all(
                    source, self._topic, owned, self._database, self._writer, self._max_records, self._metrics
                )
                if time.monotonic() >= measured_at + MEASURE_EVERY_S or (lag and not num_records):
                    lag, measured_at = self._measure_lag(source), time.monotonic()
                self._report(lag, "")
                if not num_records and not self._place_others():
                    self._stopping.wait(IDLE_WAIT_S)
        finally:
            source.close()

    def _place_others(self) -> bool:
        """Place rows that somebody else stored; whether there were any."""
        with self._database.connect() as connection:
            if not has_unplaced(connection):
                return False
        return self._writer.run(place_undecided).result() > 0

    def _measure_lag(self, source: Log) -> int:
        lags = measure_lag(source, self._topic, self._database)
        for partition, lag in lags.items():
            self._metrics.partition_lag.labels(str(partition)).set(lag)
        self._metrics.lag.set(sum(lags.values()))
        return sum(lags.values())


def consume_all(
    source: Log,
    topic: str,
    partitions: Iterable[int],
    database: sa.Engine,
    writer: Writer,
    max_records: int,
    metrics: Metrics,
) -> int:
    """One batch of each partition from where the inbox stands; return how many records were read."""
    num_read = {
        partition: consume_partition(source, topic, partition, database, writer, max_records, metrics)
        for partition in partitions
    }
    moved = {partition for partition, num_records in num_read.items() if num_records}
    if moved:
        reach("consumer.committed")
        with database.connect() as connection:
            reached = inbox.load_offsets(connection, topic)
        try:
            source.commit(GROUP, topic, {partition: reached[partition] for partition in moved})
        except LogUnavailable as error:
            log.warning("the group's offsets are not published: %s", error)  # only for those who watch
    return sum(num_read.values())


def consume_partition(
    source: Log, topic: str, partition: int, database: sa.Engine, writer: Writer, max_records: int, metrics: Metrics
) -> int:
    """One batch of one partition, or over a gap; return how many records were read."""
    with database.connect() as connection:
        offset = inbox.load_offset(connection, topic, partition)
    try:
        records = source.read(topic, partition, offset, max_records, 0.0)
    except OffsetOutOfRange as error:
        if error.begin <= offset:
            raise  # the log is shorter than what was read from it: another log, or one that lost its end
        lost = writer.run(partial(inbox.record_gap, topic=topic, partition=partition, begin=error.begin)).result()
        log.error("%s[%d]: retention took %d records before they were read", topic, partition, lost)
        metrics.lost_records.inc(lost)
        return 0
    if not records:
        return 0
    reach("consumer.read")
    try:
        num_new = _store(writer, records, offset)
    except PositionMismatch as error:
        # The inbox was set back (a replay, a backup): the next look reads from where it stands now.
        log.warning("seeking: %s", error)
        metrics.seeks.inc()
        return 0
    metrics.consumed.inc(num_new)
    return len(records)


def _store(writer: Writer, records: list[Record], offset: int) -> int:
    """Store a batch; if the database has something against a row, one by one, so that this row alone is set aside."""
    consume = partial(inbox.consume, records=records, read_from=offset, place=place_rows)
    try:
        return writer.run(consume).result()
    except Exception as error:
        cause = error.__cause__ if isinstance(error, DatabaseError) else None  # the writer's wrapping
        if not is_of_data(cause or error):
            raise
        log.warning("a batch is stored record by record: %s", describe_error(error))
        return writer.run(partial(consume, one_by_one=True)).result()


def measure_lag(source: Log, topic: str, database: sa.Engine) -> dict[int, int]:
    """Records that the inbox has still to take, by partition."""
    with database.connect() as connection:
        offsets = inbox.load_offsets(connection, topic)
    lags = {}
    for partition in source.partitions(topic):
        begin, end = source.bounds(topic, partition)
        lags[partition] = max(0, end - max(begin, offsets.get(partition, begin)))
    return lags

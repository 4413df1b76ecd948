"""Reads the log into the inbox, for ever: a round never stops it, and an error only makes it wait.

Each batch and its offset move in one transaction, so a crash repeats and never loses. What cannot be read goes to the
inbox's dead letters. Does not interpret preferences.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial

import sqlalchemy as sa

from feedback import inbox
from feedback.database import Writer
from feedback.errors import FeedbackError, OffsetOutOfRange
from feedback.faults import reach
from feedback.log.base import Log
from trainer.metrics import Metrics

log = logging.getLogger("trainer.consumer")

GROUP = "trainer"
FIRST_BACKOFF_S = 0.2
MAX_BACKOFF_S = 15.0
IDLE_WAIT_S = 0.2  # how long an idle consumer waits for the next record


class Consumer(threading.Thread):
    """One thread over all partitions. open_log is called again after a failure. `stop` once."""

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
                expected = isinstance(error, FeedbackError)
                log.log(logging.WARNING if expected else logging.ERROR, "consumer: %s", error, exc_info=not expected)
                self._metrics.consumer_errors.inc()
                self._report(None, str(error))
                if time.monotonic() - started > MAX_BACKOFF_S:
                    backoff_s = FIRST_BACKOFF_S
                self._stopping.wait(backoff_s)
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)

    def _read_until_stopped(self) -> None:
        source = self._open_log()
        try:
            while not self._stopping.is_set():
                num_records = consume_all(
                    source, self._topic, self._database, self._writer, self._max_records, self._metrics
                )
                lag = measure_lag(source, self._topic, self._database)
                self._metrics.lag.set(lag)
                self._report(lag, "")
                if not num_records:
                    self._stopping.wait(IDLE_WAIT_S)
        finally:
            source.close()


def consume_all(
    source: Log, topic: str, database: sa.Engine, writer: Writer, max_records: int, metrics: Metrics
) -> int:
    """One batch of every partition from where the inbox stands; return how many records were read."""
    num_records = 0
    for partition in source.partitions(topic):
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
            continue
        if records:
            reach("consumer.read")
            num_new = writer.run(partial(inbox.consume, records=records, read_from=offset)).result()
            num_records += len(records)
            metrics.consumed.inc(num_new)
    if num_records:
        reach("consumer.committed")
        with database.connect() as connection:
            source.commit(GROUP, topic, inbox.load_offsets(connection, topic))
    return num_records


def measure_lag(source: Log, topic: str, database: sa.Engine) -> int:
    """Records that the inbox has still to take."""
    with database.connect() as connection:
        offsets = inbox.load_offsets(connection, topic)
    return sum(
        max(0, end - max(begin, offsets.get(partition, begin)))
        for partition in source.partitions(topic)
        for begin, end in [source.bounds(topic, partition)]
    )

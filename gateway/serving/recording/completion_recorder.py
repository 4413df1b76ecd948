"""Records single answers with their requests, so that signals can be told of them: a bounded buffer and its thread.

Best effort: what finds the buffer full, or cannot be written, is dropped and counted; serving never waits, and never
sees a failure. The thread rests so that it takes a small share of the core that serves: at full load some are dropped.
Says nothing of comparisons, whose rows are durable before they are shown (comparison_recorder.py).
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import threading
import time
from collections import deque
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.serving.recording.completion_store import MAX_DELETED, CompletionStore, Row, StoredCompletion
from gateway.settings import GatewaySettings

logger = logging.getLogger("gateway.completions")

Record = tuple[float, str | None, str, str, str, str, str, str, bytes, bytes, bool]
"""(at, completion id if known, app, user hash, conversation, policy, checkpoint, arm, request body, response body,
is_stream): `at` in epoch seconds, the bodies as they were received and as the engine sent it, a stream's in one piece."""

_WRITE_EVERY_S = 0.1
_TRIM_EVERY_S = 1.0
_TRIM_FOR_S = 0.5
_MEASURE_EVERY_S = 60.0  # of a shared database, which must add its rows up
_BATCH_ROWS = 1024
_SHARE_OF_CORE = 0.08  # that writing may take: a thread that has the interpreter keeps it from the one that serves
_FLUSH_TIMEOUT_S = 2.0
_CLOSE_TIMEOUT_S = 10.0
_MAX_ID = 256  # bytes
_ID_WITHIN = 1024
_ID = re.compile(rb'"id"\s*:\s*"([^"\\]{1,%d})"' % _MAX_ID)


class CompletionRecorder:
    """`note` is for the event loop's thread alone; a thread of its own writes, and deletes what has become old."""

    def __init__(self, store: CompletionStore, settings: GatewaySettings, registry: CollectorRegistry) -> None:
        section = settings.gateway
        self._store = store
        self._share = section.record_share if section.record_completions else 0.0
        self._max_rows = section.completions_buffer_rows
        self._keep_s = section.completions_keep_hours * 3600
        self._max_stored_bytes = section.completions_max_mb * 1e6
        self.num_recorded = 0
        self.num_full = 0  # dropped: no room in the buffer
        self.num_unwritten = 0  # dropped: the store failed
        self.num_nameless = 0  # dropped: no id in the answer
        self._noted: deque[Record] = deque()
        self._bytes_noted = 0  # ever: moved by the event loop's thread alone,
        self._bytes_limit = int(section.completions_buffer_mb * 1e6)  # and this by the writing one: no lock
        self._num_writing = 0
        self._excess = 0
        self._measured_at = self._trimmed_at = float("-inf")
        self._known_failures: set[str] = set()
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._turn = threading.Condition()
        self._turns_asked = self._turns_done = 0
        self._thread = threading.Thread(target=self._work, name="completions-writer", daemon=True)
        registry.register(_Counts(self))

    @property
    def is_recording(self) -> bool:
        """Whether `note` keeps anything at all."""
        return self._share > 0

    @property
    def num_pending(self) -> int:
        """Records that wait, or are being written."""
        return len(self._noted) + self._num_writing

    def note(self, record: Record) -> None:
        """Keep one answer, unless the buffer is full. Never blocks, never raises."""
        if self._share < 1.0 and random.random() >= self._share:
            return
        num_bytes = self._bytes_noted + len(record[8]) + len(record[9])
        if num_bytes > self._bytes_limit or len(self._noted) >= self._max_rows:
            self.num_full += 1
            return
        self._bytes_noted = num_bytes
        self._noted.append(record)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self) -> None:
        """Write what waits, then stop; gives up after ten seconds. Blocks."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_TIMEOUT_S)

    def flush(self, timeout_s: float = _FLUSH_TIMEOUT_S) -> bool:
        """Wait until what was noted so far is written or dropped; False if that takes longer. Blocks."""
        with self._turn:
            self._turns_asked += 1
            mine = self._turns_asked
            self._wake.set()
            return self._turn.wait_for(lambda: self._turns_done >= mine, timeout_s)

    async def find(self, app: str, completion_id: str) -> StoredCompletion | None:
        """The app's answer with this id, also if it was noted just now. Raises FeedbackError, SQLAlchemyError."""
        if not self._store.is_open:  # the thread has only just started
            await asyncio.to_thread(self.flush)
        may_be_pending = self.num_pending > 0  # asked before looking: it may be committed between the two
        found = await asyncio.to_thread(self._store.find, app, completion_id)
        if found is None and may_be_pending:
            await asyncio.to_thread(self.flush)
            found = await asyncio.to_thread(self._store.find, app, completion_id)
        if found is None and self._store.is_shared:  # another gateway may hold it still
            await asyncio.sleep(2 * _WRITE_EVERY_S)
            found = await asyncio.to_thread(self._store.find, app, completion_id)
        return found

    def _work(self) -> None:
        while True:
            is_closing = self._closing.is_set()
            turn = self._turns_asked
            self._wake.clear()
            self._open()
            self._write_noted()
            with self._turn:
                self._turns_done = turn
                self._turn.notify_all()
            if is_closing:
                self._store.close()
                return
            self._trim()
            self._wake.wait(_WRITE_EVERY_S)

    def _write_noted(self) -> None:
        """Write what waits now; what comes meanwhile is for the next turn."""
        num_left = len(self._noted)
        while num_left:
            began = time.thread_time()
            self._num_writing = min(num_left, _BATCH_ROWS)
            batch = [self._noted.popleft() for _ in range(self._num_writing)]
            num_left -= len(batch)
            num_stored = self._store_batch(batch)
            if num_stored is None:
                self.num_unwritten += len(batch)
            else:
                self.num_recorded += num_stored
                self.num_nameless += len(batch) - num_stored
            self._bytes_limit += sum(len(record[8]) + len(record[9]) for record in batch)
            self._num_writing = 0
            self._wake.wait((time.thread_time() - began) * (1 / _SHARE_OF_CORE - 1))

    def _open(self) -> None:
        try:
            self._store.open()
        except Exception as error:  # as below
            self._note_failure(error)

    def _store_batch(self, batch: list[Record]) -> int | None:
        """How many had an id and are stored, None if the store failed. Tries twice: a connection may have been lost."""
        for _ in range(2):
            try:
                self._store.open()
                return self._store.insert(row for record in batch if (row := name_record(record)) is not None)
            except Exception as error:  # the edge of the thread's loop: recording must outlive whatever the store does
                self._note_failure(error)
        return None

    def _trim(self) -> None:
        """Delete in small steps what is too old or too much, for a part of each second at most."""
        now = time.monotonic()
        if now - self._trimmed_at < _TRIM_EVERY_S:
            return
        self._trimmed_at = now
        try:
            self._store.open()
            if not self._store.is_shared or now - self._measured_at >= _MEASURE_EVERY_S:
                self._measured_at = now
                self._excess = self._store.count_excess(self._max_stored_bytes)
            while time.monotonic() - now < _TRIM_FOR_S and not self._wake.is_set():
                num_deleted = self._store.delete_oldest(self._excess, time.time() - self._keep_s)
                self._excess = max(0, self._excess - num_deleted)
                if num_deleted < MAX_DELETED:
                    break
        except Exception as error:  # as above
            self._note_failure(error)

    def _note_failure(self, error: Exception) -> None:
        self._store.reset()
        kind = f"{type(error).__name__} {getattr(error, 'sqlite_errorname', '') or str(error)[:60]}"
        if kind not in self._known_failures and len(self._known_failures) < 100:
            self._known_failures.add(kind)
            logger.error("completions are not recorded (said once; the metrics count on): %s", error)


def name_record(record: Record) -> Row | None:
    """The row of a record, its id found in the answer's first bytes if it is not known; None if there is none."""
    completion_id = record[1] or find_id(record[9])
    return None if completion_id is None else (record[0], completion_id, *record[2:])


def find_id(answer: bytes) -> str | None:
    """The first id in an answer or its first event: engines write it before everything else."""
    start = answer.find(b'"id":"', 0, _ID_WITHIN) + 6
    end = answer.find(b'"', start, start + _MAX_ID) if start >= 6 else -1
    found = answer[start:end] if end > start else b"\\"
    if b"\\" in found:  # not written as vLLM does
        match = _ID.search(answer, 0, _ID_WITHIN)
        if match is None:
            return None
        found = match[1]
    return found.decode("utf-8", "replace")


class _Counts(Collector):
    """Plain integers as metrics, read when Prometheus asks."""

    def __init__(self, completions: CompletionRecorder) -> None:
        self._completions = completions

    def collect(self) -> Iterator[Metric]:
        """The three metrics."""
        source = self._completions
        yield CounterMetricFamily(
            "prefloop_completions_recorded", "Single answers that were stored.", value=source.num_recorded
        )
        dropped = CounterMetricFamily(
            "prefloop_completions_dropped", "Single answers that were not stored, by reason.", labels=["reason"]
        )
        dropped.add_metric(["full"], source.num_full)
        dropped.add_metric(["store"], source.num_unwritten)
        dropped.add_metric(["no_id"], source.num_nameless)
        yield dropped
        yield GaugeMetricFamily(
            "prefloop_completions_pending", "Single answers that wait to be stored.", value=source.num_pending
        )

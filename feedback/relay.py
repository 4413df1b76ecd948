"""Moves the rows of an outbox to the log, in a thread of its own, so that serving never waits for the log.

At least once: a row is deleted only after the log holds it, so a crash in between repeats it and readers drop the
repeat by event id. Rows of one key reach the log in the order of their ids: of several processes on one PostgreSQL
only one relays at a time. While the log is down, rows wait and the relay backs off.
"""

from __future__ import annotations

import logging
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

import sqlalchemy as sa

from feedback import choices
from feedback.database import Writer
from feedback.log.base import Log
from feedback.outbox import Backlog, OutboxRow, delete_rows, load_rows, measure_backlog

logger = logging.getLogger("feedback.relay")

OnMoved = Callable[[int, float], None]

MEASURE_EVERY_S = 2.0
CLOSE_TIMEOUT_S = 5.0  # for the batch in hand; the log may hang for longer
HELD_AT_MOST_S = 180  # by a relay whose machine is gone, before PostgreSQL lets another one relay


@dataclass(frozen=True)
class RelayState:
    """What operators see of a relay. backlog is None until it was measured; failing_since: epoch seconds, None if well."""

    backlog: Backlog | None = None
    num_moved: int = 0
    num_failures: int = 0
    failing_since: float | None = None


class Relay:
    """One thread from an outbox of `database` to `topic`.

    on_moved(num_records, oldest_age_s) is told of every batch, on_failure(error) of every failed attempt; both are
    called in the relay's thread. max_batch also caps what is in flight to the log.
    """

    def __init__(
        self,
        database: sa.Engine,
        writer: Writer,
        log: Log,
        topic: str,
        *,
        outbox: sa.Table = choices.outbox,
        on_moved: OnMoved = lambda num_records, oldest_age_s: None,
        on_failure: Callable[[Exception], None] = lambda error: None,
        max_batch: int = 500,
        poll_s: float = 0.25,
        max_backoff_s: float = 5.0,
    ) -> None:
        self._database = database
        self._writer = writer
        self._log = log
        self._topic = topic
        self._outbox = outbox
        self._on_moved = on_moved
        self._on_failure = on_failure
        self._max_batch = max_batch
        self._poll_s = poll_s
        self._max_backoff_s = max_backoff_s
        self._measured_at = -MEASURE_EVERY_S
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="outbox-relay", daemon=True)
        self.state = RelayState()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def notify(self) -> None:
        """Say that there is work, instead of letting it wait for the next look. Any thread may call."""
        self._wake.set()

    def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Stop after the batch in hand, or leave it after timeout_s; what waits stays in the outbox.

        Close the relay before writer and log: closing the log ends an append that hangs.
        """
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.warning("relay: the log hangs; the batch in hand stays in the outbox")

    def move_batch(self) -> int:
        """Move the oldest rows that wait; return how many. Raises what the database or the log raise."""
        is_shared = self._database.dialect.name == "postgresql"
        rows = self._move_locked() if is_shared else self._move_alone()
        if rows:
            self.state = replace(self.state, num_moved=self.state.num_moved + len(rows))
            self._on_moved(len(rows), max(0.0, time.time() - rows[0].created_at))
        return len(rows)

    def _move_alone(self) -> list[OutboxRow]:
        # SQLite has one writing process, whose writer must not be kept waiting while the log takes its time.
        with self._database.connect() as connection:
            rows = load_rows(connection, self._outbox, self._max_batch)
        if rows:
            self._append(rows)
            self._writer.run(lambda connection: self._delete(connection, rows)).result()
        return rows

    def _move_locked(self) -> list[OutboxRow]:
        # Rows that another relay skipped could overtake those it holds: so the lock is on relaying itself.
        with self._database.begin() as connection:
            connection.execute(sa.text(f"SET LOCAL idle_in_transaction_session_timeout = '{HELD_AT_MOST_S}s'"))
            key = zlib.crc32(f"prefloop relay {self._outbox.name}".encode())
            if not connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(key))).scalar_one():
                return []
            rows = load_rows(connection, self._outbox, self._max_batch)
            if rows:
                self._append(rows)
                self._delete(connection, rows)
            return rows

    def _append(self, rows: list[OutboxRow]) -> None:
        self._log.append(self._topic, [row.record for row in rows])

    def _delete(self, connection: sa.Connection, rows: list[OutboxRow]) -> None:
        delete_rows(connection, self._outbox, [row.id for row in rows])

    def _work(self) -> None:
        num_failures = 0
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self._measure()
                num_moved = self.move_batch()
            except Exception as error:  # the edge of the relay's loop: it must outlive every outage
                num_failures += 1
                backoff_s = min(self._max_backoff_s, 0.1 * 2 ** min(num_failures, 10))
                logger.warning("relay: attempt %d failed, next in %.1f s: %s", num_failures, backoff_s, error)
                self._note_failure(error)
                self._closing.wait(backoff_s)  # not woken by new choices: they are no reason to hurry
                continue
            num_failures = 0
            self.state = replace(self.state, failing_since=None)
            if num_moved < self._max_batch:
                self._wake.wait(self._poll_s)

    def _measure(self) -> None:
        if time.monotonic() < self._measured_at + MEASURE_EVERY_S:
            return
        with self._database.connect() as connection:
            backlog = measure_backlog(connection, self._outbox, time.time())
        self.state = replace(self.state, backlog=backlog)
        self._measured_at = time.monotonic()

    def _note_failure(self, error: Exception) -> None:
        since = self.state.failing_since
        since = time.time() if since is None else since
        self.state = replace(self.state, num_failures=self.state.num_failures + 1, failing_since=since)
        self._on_failure(error)

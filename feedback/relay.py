"""Moves outbox rows to the log, in a thread of its own, so that serving never waits for the log.

At least once: a row is deleted only after the log holds it, so a crash in between repeats it and readers drop the
repeat by event id. While the log is down, rows wait in the outbox and the relay backs off.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

import sqlalchemy as sa

from feedback.choices import delete_outbox, pending_outbox
from feedback.database import Writer
from feedback.faults import reach
from feedback.log.base import Log

logger = logging.getLogger("feedback.relay")

OnMoved = Callable[[int, float], None]


class Relay:
    """One thread from `database`'s outbox to `topic`.

    on_moved(num_records, oldest_age_s) is told of every batch, on_failure(error) of every failed attempt; both are
    called in the relay's thread.
    """

    def __init__(
        self,
        database: sa.Engine,
        writer: Writer,
        log: Log,
        topic: str,
        *,
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
        self._on_moved = on_moved
        self._on_failure = on_failure
        self._max_batch = max_batch
        self._poll_s = poll_s
        self._max_backoff_s = max_backoff_s
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._work, name="outbox-relay", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def notify(self) -> None:
        """Say that there is work, instead of letting it wait for the next look. Any thread may call."""
        self._wake.set()

    def close(self) -> None:
        """Stop after the batch in hand; what waits stays in the outbox. Close the relay before writer and log."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def move_batch(self) -> int:
        """Move the oldest rows that wait; return how many. Raises what the database or the log raise."""
        with self._database.connect() as connection:
            rows = pending_outbox(connection, self._max_batch)
        if not rows:
            return 0
        self._log.append(self._topic, [row.record for row in rows])
        reach("relay.appended")
        ids = [row.id for row in rows]
        self._writer.run(lambda connection: delete_outbox(connection, ids)).result()
        self._on_moved(len(rows), max(0.0, time.time() - rows[0].created_at))
        return len(rows)

    def _work(self) -> None:
        num_failures = 0
        while not self._closing.is_set():
            self._wake.clear()
            try:
                num_moved = self.move_batch()
                num_failures = 0
            except Exception as error:  # the edge of the relay's loop: it must outlive every outage
                num_failures += 1
                backoff_s = min(self._max_backoff_s, 0.1 * 2 ** min(num_failures, 10))
                logger.warning("relay: attempt %d failed, next in %.1f s: %s", num_failures, backoff_s, error)
                self._on_failure(error)
                self._closing.wait(backoff_s)  # not woken by new choices: they are no reason to hurry
                continue
            if num_moved < self._max_batch:
                self._wake.wait(self._poll_s)

"""Records comparisons: a row must be committed before the token of its comparison leaves the house.

Waits for the commit; a row that comes too late, or whose client has gone, was never shown and is taken out again, for
it would count as one that a user left unanswered. (A process that dies in between leaves it.) When commits back up,
pairs are not made at all, nor while the database is down: the fleet's reports use the same writer, and so find out when
it is back. Single answers are recorded by completion_recorder.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Future

from feedback.choices import delete_comparisons, store_comparison
from feedback.database import Writer
from feedback.events import Comparison
from feedback.outages import log_failure

logger = logging.getLogger("gateway.recorder")

_MAX_PENDING = 256
_RETRY_S = 1.0


class ComparisonRecorder:
    """Hands comparisons to the writer, and knows how many wait there."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.num_pending = 0
        self._unshown: set[str] = set()  # rows to be taken out

    @property
    def is_backed_up(self) -> bool:
        """Whether so many rows wait that no more comparisons should be made."""
        return self.num_pending >= _MAX_PENDING

    @property
    def is_failing(self) -> bool:
        """Whether the database is down, as far as the last write knows: no comparison would be stored now."""
        return self._writer.is_failing

    async def record(self, comparison: Comparison, wait_s: float, log_fields: Mapping[str, str]) -> bool:
        """Store a comparison; True once it is committed, False if that fails or takes longer than `wait_s`.

        `log_fields`: what log lines about it carry. Cancelling it means that nothing will be shown.
        """
        loop = asyncio.get_running_loop()
        self.num_pending += 1
        try:
            future: Future[None] = self._writer.run(lambda conn: store_comparison(conn, comparison))
        except Exception as error:
            self.num_pending -= 1
            log_failure(logger, f"comparison {comparison.id} was not taken", error, log_fields)
            return False
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._finish, comparison.id, log_fields, done))
        is_stored = False
        try:
            async with asyncio.timeout(wait_s):
                await asyncio.shield(asyncio.wrap_future(future))
            is_stored = True
        except Exception:
            pass  # too late, or a failure, which `_finish` logs
        finally:
            if not is_stored and not future.cancel():
                self._withdraw(comparison.id)
        return is_stored

    def _finish(self, comparison_id: str, log_fields: Mapping[str, str], done: Future[None]) -> None:
        self.num_pending -= 1
        error = None if done.cancelled() else done.exception()
        if error is not None:
            logger.error("comparison %s was not stored: %s", comparison_id, error, extra=log_fields)

    def _withdraw(self, comparison_id: str) -> None:
        """Delete the row, behind the transaction that may have stored it."""
        self._unshown.add(comparison_id)
        if len(self._unshown) == 1:
            self._delete_unshown()

    def _delete_unshown(self) -> None:
        loop = asyncio.get_running_loop()
        ids = frozenset(self._unshown)

        def end(done: Future[None]) -> None:
            if done.exception() is None:
                self._unshown -= ids
            if self._unshown:
                loop.call_later(_RETRY_S, self._delete_unshown)

        try:
            future = self._writer.run(lambda conn: delete_comparisons(conn, ids))
        except Exception:  # the writer is full, or closed
            loop.call_later(_RETRY_S, self._delete_unshown)
        else:
            future.add_done_callback(lambda done: loop.call_soon_threadsafe(end, done))

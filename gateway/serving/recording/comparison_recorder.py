"""Records what was shown: a comparison's row must be committed before its token leaves the house.

Waits a short time for the commit; a row that comes too late is never asked about. When commits back up, pairs are not
made at all, nor while the database is down: the fleet's reports use the same writer, and so find out when it is back.
Single completions are recorded by completions.py.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import Future

from feedback.choices import store_comparison
from feedback.database import Writer
from feedback.events import Comparison
from feedback.outages import log_failure

logger = logging.getLogger("gateway.recorder")

_MAX_PENDING = 256


class ComparisonRecorder:
    """Hands comparisons to the writer, and knows how many wait there."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self.num_pending = 0
        self.num_late = 0

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

        `log_fields`: what log lines about it carry.
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
        waiting = asyncio.wrap_future(future)
        done, _ = await asyncio.wait([waiting], timeout=wait_s)
        if not done:
            self.num_late += 1
            waiting.add_done_callback(lambda late: late.cancelled() or late.exception())
            return False
        return waiting.exception() is None

    def _finish(self, comparison_id: str, log_fields: Mapping[str, str], done: Future[None]) -> None:
        self.num_pending -= 1
        error = done.exception()
        if error is not None:
            logger.error("comparison %s was not stored: %s", comparison_id, error, extra=log_fields)

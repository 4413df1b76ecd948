"""Has old comparisons forget what they showed, some at a time, by the gateway that leads.

Off unless `gateway.comparisons_keep_days` is set. A failure is logged and tried again with the next look.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter

from feedback.outages import log_failure
from feedback.retention import forget_comparisons

if TYPE_CHECKING:
    from feedback.database import Writer
    from gateway.rollout.membership import Membership

logger = logging.getLogger("gateway.retention")

_EVERY_S = 60.0
_BATCH = 200  # rows of one transaction: choices wait for it
_PAUSE_S = 0.05  # between two of them
_DAY_S = 86_400.0


class Retention:
    """The loop. keep_days: after a comparison has run out, how long what it showed is kept."""

    def __init__(
        self,
        writer: Writer,
        membership: Membership,
        keep_days: float,
        registry: CollectorRegistry,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._writer, self._membership, self._keep_s, self._clock = writer, membership, keep_days * _DAY_S, clock
        self.forgotten = Counter(
            "prefloop_comparisons_forgotten", "Comparisons whose prompt and answers were forgotten.", registry=registry
        )

    async def run(self) -> None:
        """Look every minute, until cancelled."""
        while True:
            try:
                await self.forget_old()
            except Exception as error:
                log_failure(logger, "old comparisons could not be forgotten", error)
            await asyncio.sleep(_EVERY_S)

    async def forget_old(self) -> int:
        """Forget all that is old enough, if this gateway leads; how many there were."""
        num = 0
        while self._membership.fence is not None:
            before = self._clock() - self._keep_s
            done = await self._writer.arun(partial(forget_comparisons, before=before, num=_BATCH))
            self.forgotten.inc(done)
            num += done
            if done < _BATCH:
                break
            await asyncio.sleep(_PAUSE_S)
        return num

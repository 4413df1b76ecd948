"""The requests that are made for nobody, and are thrown away: so many at once and no more. Closing ends them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from feedback.outages import log_failure

logger = logging.getLogger("gateway.shadow")


class ShadowQueue:
    """What is in flight. num_left_out: how many were not made because so many were."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.num_left_out = 0

    def start(self, work: Callable[[], Coroutine[Any, Any, None]], max_in_flight: int) -> bool:
        """Begin it, unless there are `max_in_flight`; says whether it has begun. An error is logged."""
        if len(self._tasks) >= max_in_flight:
            self.num_left_out += 1
            return False
        task = asyncio.create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return True

    def close(self) -> None:
        """End all of them."""
        for task in self._tasks:
            task.cancel()

    def _end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and isinstance(error, Exception):
            log_failure(logger, "a shadow request failed", error)

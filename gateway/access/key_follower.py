"""Keeps the keys in memory true: reads the table every few seconds, and at once for a key that nobody knew so far.

So a key made through another gateway works here with its first request, and one revoked there ends here within seconds. Unknown
keys cost at most one reading a second, whoever sends how many: the others are refused by what is known.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from feedback.outages import log_failure

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from gateway.access.key_ring import KeyRing

logger = logging.getLogger("gateway.keys")

_EVERY_S = 5.0
_LEAST_S = 1.0


class KeyFollower:
    """Of one key ring. clock is monotonic."""

    def __init__(self, keys: KeyRing, database: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys, self._database, self._clock = keys, database, clock
        self._reading: asyncio.Task[None] | None = None
        self._began_at = clock()

    async def run(self) -> None:
        """Read for ever; a failure is logged and tried again."""
        while True:
            await asyncio.sleep(_EVERY_S)
            await asyncio.shield(self._reading or self._begin())

    def may_find(self, header: bytes) -> bool:
        """Whether `look` might make an `Authorization` header known."""
        return self._keys.is_unheard_of(header) and (
            self._reading is not None or self._clock() - self._began_at >= _LEAST_S
        )

    async def look(self) -> None:
        """Read the keys now, unless that was done just now. Never raises."""
        if self._reading is not None:
            await asyncio.shield(self._reading)
        elif self._clock() - self._began_at >= _LEAST_S:
            await asyncio.shield(self._begin())

    def close(self) -> None:
        """End a reading that is under way."""
        if self._reading is not None:
            self._reading.cancel()

    def _begin(self) -> asyncio.Task[None]:
        self._began_at = self._clock()
        self._reading = asyncio.create_task(self._read())
        return self._reading

    async def _read(self) -> None:
        try:
            await asyncio.to_thread(self._keys.refresh, self._database)
        except Exception as error:
            log_failure(logger, "the keys could not be read again", error)
        finally:
            self._reading = None

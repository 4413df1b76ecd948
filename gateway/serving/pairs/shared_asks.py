"""Keeps the ledger of asks true for all gateways of a database: reads what the others showed, and what was skipped there.

Every few seconds and in the background: deciding whether to ask reads memory alone, so for these seconds a user may be asked
once more than the cap says. The first look reaches back a day, so that a restart forgets nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from feedback.outages import log_failure
from gateway.tables.asks import Shown, list_shown, list_skips

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from gateway.serving.pairs.asking import AskLedger

logger = logging.getLogger("gateway.asks")

_LOOK_S = 2.0
_OVERLAP_S = 60.0  # a row is committed some time after its own time
_DAY_S = 86_400.0
_MOST = 100_000


class SharedAsks:
    """The others' asks and skips, written into this gateway's ledger. cooldown_s: how long a skip keeps a user unasked."""

    def __init__(self, database: Engine, ledger: AskLedger, cooldown_s: float) -> None:
        self._database, self._ledger, self._cooldown_s = database, ledger, cooldown_s
        self._is_shared = database.dialect.name != "sqlite"
        self._known: set[str] = set()  # comparisons since `_read_at` less the overlap
        self._read_at: float | None = None

    async def run(self) -> None:
        """Look until cancelled; once, where no other process shares the database."""
        while self._is_shared or self._read_at is None:
            try:
                await self.look(time.time())
            except Exception as error:
                log_failure(logger, "what other gateways asked could not be read", error)
            await asyncio.sleep(_LOOK_S)

    async def look(self, now: float) -> None:
        """Take in what came since the last look."""
        since = now - _DAY_S if self._read_at is None else self._read_at - _OVERLAP_S
        shown, skips = await asyncio.to_thread(self._read, since, min(since, now - self._cooldown_s))
        for row in reversed(shown):
            if row.comparison not in self._known and not self._ledger.is_own(row.comparison):
                self._ledger.note_asked_elsewhere(row.user, row.at)
        for user, at in skips:
            self._ledger.note_skipped(user, at + self._cooldown_s)
        self._known = {row.comparison for row in shown if row.at > now - _OVERLAP_S - _LOOK_S}
        self._read_at = now
        self._ledger.forget_own(now - 2 * _OVERLAP_S)

    def _read(self, since: float, skipped_since: float) -> tuple[list[Shown], list[tuple[str, float]]]:
        with self._database.connect() as conn:
            is_first = self._read_at is None
            return list_shown(conn, since, _MOST), list_skips(conn, skipped_since if is_first else since)

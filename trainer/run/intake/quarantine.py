"""Collects the preferences that learning could not use, and stores them apart with their errors.

Rejecting never raises and keeps the row in memory; `flush` stores what was rejected. A crash in between finds it again,
as the row fails again. Used by the learner's thread alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import sqlalchemy as sa

from feedback import inbox, quarantine
from feedback.database import Writer, split_parameters
from feedback.outages import describe_error

log = logging.getLogger("trainer.run.intake.quarantine")


class Quarantine:
    """What was rejected and is not stored yet, and the way to the database."""

    def __init__(self, writer: Writer, now: Callable[[], float] = time.time) -> None:
        self._writer, self._now = writer, now
        self._pending: dict[str, tuple[str, str]] = {}

    def add(self, event_id: str, part: str, error: Exception) -> None:
        """Reject a preference: a `Reject`."""
        if event_id not in self._pending:
            self._pending[event_id] = part, describe_error(error)
            log.warning("preference %s goes to quarantine (%s): %s", event_id, part, describe_error(error))

    def is_pending(self, event_id: str) -> bool:
        """Whether the preference was rejected since the last flush."""
        return event_id in self._pending

    def flush(self) -> None:
        """Store what was rejected. Raises what the database raises, and then keeps it for the next time."""
        if not self._pending:
            return
        stored = dict(self._pending)
        self._writer.run(lambda connection: self._store(connection, stored)).result()
        for event_id in stored:
            self._pending.pop(event_id, None)

    def list_since(self, connection: sa.Connection, since: float) -> list[tuple[str, str, str]]:
        """(event id, part, error) of what was stored since then, in order of time."""
        table = inbox.quarantine.c
        query = sa.select(table.event_id, table.part, table.error).where(table.quarantined_at >= since)
        return [tuple(row) for row in connection.execute(query.order_by(table.quarantined_at, table.event_id))]

    def leave_out(self, connection: sa.Connection, event_ids: Sequence[str]) -> list[str]:
        """Those of the events that are not in quarantine, nor on their way there, in their order."""
        table, rejected = inbox.quarantine.c, set(self._pending)
        for chunk in split_parameters(event_ids):
            rejected |= set(connection.execute(sa.select(table.event_id).where(table.event_id.in_(chunk))).scalars())
        return [event_id for event_id in event_ids if event_id not in rejected]

    def _store(self, connection: sa.Connection, rejected: dict[str, tuple[str, str]]) -> None:
        for event_id, (part, error) in rejected.items():
            quarantine.add(connection, event_id, part, error, self._now())

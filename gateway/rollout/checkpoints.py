"""The registered checkpoints: taken in, queued for a trial, copied for an A/A trial, given up.

Any gateway may do this, not the leader alone. Nothing here touches an engine: the controller sees the tables and acts.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sqlalchemy import Connection

from feedback.database import Writer
from feedback.manifest import verify
from gateway.errors import RefusedAction
from gateway.rollout.desired_state import copy_checkpoint, find_deletable
from gateway.settings import GatewaySettings
from gateway.tables.checkpoints import (
    CheckpointRow,
    get_checkpoint,
    list_checkpoints,
    queue_checkpoint,
    register_checkpoint,
    require_startable,
    set_status,
)
from gateway.tables.gateways import list_reports
from gateway.tables.rollouts import find_promotion
from gateway.tables.serving import get_stable


class CheckpointRegistry:
    """The table of checkpoints. on_change is called when there may be something new to try."""

    def __init__(
        self, writer: Writer, settings: GatewaySettings, on_change: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._writer, self._on_change, self._clock = writer, on_change, clock
        self._policy, self._settings = settings.policy, settings.rollout

    async def register(self, path: str) -> tuple[CheckpointRow, bool]:
        """Register the checkpoint in a directory; returns (row, whether it is new)."""
        manifest = await asyncio.to_thread(verify, Path(path))
        where = str(await asyncio.to_thread(Path(path).resolve))  # engines run elsewhere
        found = await self._writer.arun(lambda conn: register_checkpoint(conn, manifest, where, self._clock()))
        self._on_change()
        return found

    async def list_checkpoints(self) -> list[tuple[CheckpointRow, bool]]:
        """Every registered checkpoint in order of arrival, and whether its files may be deleted."""

        def read(conn: Connection) -> list[tuple[CheckpointRow, bool]]:
            deletable = self._list_deletable(conn)
            return [(row, row.id in deletable) for row in list_checkpoints(conn)]

        return await self._writer.arun(read)

    async def delete(self, checkpoint: str) -> CheckpointRow:
        """Give up a checkpoint's files: it cannot serve again. Harmless to repeat. Raises LookupError, RefusedAction."""

        def write(conn: Connection) -> CheckpointRow:
            row = get_checkpoint(conn, checkpoint)
            if row is None:
                raise LookupError(checkpoint)
            if row.status != "deleted" and row.id not in self._list_deletable(conn):
                raise RefusedAction(f"Checkpoint {checkpoint} is {row.status} and may be needed.")
            set_status(conn, checkpoint, "deleted")
            return replace(row, status="deleted")

        return await self._writer.arun(write)

    def _list_deletable(self, conn: Connection) -> frozenset[str]:
        held = (name for report in list_reports(conn) for name in (*report.expected, *report.in_flight))
        stable = get_stable(conn, self._policy)
        last = None if stable is None else find_promotion(conn, self._policy, stable.id)
        before = () if last is None else (last.stable,)  # a roll back goes there
        return find_deletable(
            list_checkpoints(conn), stable, frozenset((*held, *before)), self._settings.keep_checkpoints
        )

    async def start_rollout(self, checkpoint: str) -> CheckpointRow:
        """Queue a known checkpoint for trial. Raises LookupError or RefusedAction."""

        def write(conn: Connection) -> CheckpointRow:
            row = require_startable(get_checkpoint(conn, checkpoint), checkpoint)
            queue_checkpoint(conn, checkpoint, self._clock())
            return row

        row = await self._writer.arun(write)
        self._on_change()
        return row

    async def start_aa(self) -> CheckpointRow:
        """Put stable's own weights on trial under a new id.

        Raises RefusedAction if nothing is stable yet, or another checkpoint waits for its trial already.
        """

        def read(conn: Connection) -> tuple[CheckpointRow | None, list[CheckpointRow]]:
            return get_stable(conn, self._policy), list_checkpoints(conn)

        stable, rows = await self._writer.arun(read)
        if stable is None:
            raise RefusedAction("Nothing is stable yet.")
        if waiting := [row.id for row in rows if row.status == "waiting"]:
            raise RefusedAction(f"Checkpoint {waiting[0]} waits for its trial already.")
        number = max(row.number for row in rows) + 1
        path = await asyncio.to_thread(copy_checkpoint, stable, number)
        return (await self.register(str(path)))[0]

"""The registered checkpoints: taken in, queued for a trial, copied for an A/A trial, given up.

Any gateway may do this, not the leader alone. Nothing here touches an engine: the controller sees the tables and acts.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from sqlalchemy import Connection

from feedback.database import Writer
from feedback.errors import ManifestError
from feedback.manifest import MANIFEST, SIGNATURE, Manifest, verify
from feedback.signing import TrustedKeys, read_trusted_keys
from gateway.errors import RefusedAction
from gateway.rollout.desired_state import copy_checkpoint, find_deletable, make_aa_manifest
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

MAY_SERVE = ("waiting", "canary", "stable", "baking", "draining")  # statuses, of which engines should have the files


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint, whether nothing needs its files, and whether engines may be told to serve it."""

    row: CheckpointRow
    may_delete: bool
    may_serve: bool


class CheckpointRegistry:
    """The table of checkpoints. on_change is called when there may be something new to try.

    Raises StoreUnavailable or SigningKeyError for settings that name no store, or no keys, that could be used.
    """

    def __init__(
        self, writer: Writer, settings: GatewaySettings, on_change: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._writer, self._on_change, self._clock = writer, on_change, clock
        self._policy, self._settings = settings.policy, settings.rollout
        self._store, self._trusted = settings.open_store(), read_trusted_keys(settings.trusted_keys_file)

    async def register(self, path: str) -> tuple[CheckpointRow, bool]:
        """Register the checkpoint in a directory; returns (row, whether it is new).

        Raises ManifestError for what must not serve, ValueError where checkpoints are kept in a store.
        """
        if self._store is not None:
            raise ValueError("checkpoints_url is set, so checkpoints are registered by the id they have in that store")
        manifest = await asyncio.to_thread(_verify_directory, Path(path), self._trusted)
        return await self._add(manifest, str(await asyncio.to_thread(Path(path).resolve)))  # engines run elsewhere

    async def register_stored(self, checkpoint: str) -> tuple[CheckpointRow, bool]:
        """Register a checkpoint of the store by its id; returns (row, whether it is new). Reads no weights.

        Raises UnknownCheckpoint, StoreUnavailable; ManifestError for what must not serve, ValueError without a store.
        """
        store = self._store
        if store is None:
            raise ValueError("no checkpoints_url is set, so checkpoints are registered by their directory")
        stored = await asyncio.to_thread(store.read, checkpoint, self._trusted)
        if missing := await asyncio.to_thread(store.find_missing, stored.manifest):
            raise ManifestError(f"{missing[0]} is missing in the store")
        return await self._add(stored.manifest, store.locate(checkpoint))

    async def _add(self, manifest: Manifest, path: str) -> tuple[CheckpointRow, bool]:
        found = await self._writer.arun(lambda conn: register_checkpoint(conn, manifest, path, self._clock()))
        self._on_change()
        return found

    async def list_checkpoints(self) -> list[ListedCheckpoint]:
        """Every registered checkpoint in order of arrival, and what its files are needed for."""

        def read(conn: Connection) -> list[ListedCheckpoint]:
            deletable, held = self._list_deletable(conn), self._list_held(conn)
            return [
                ListedCheckpoint(row, row.id in deletable, row.status in MAY_SERVE or row.id in held)
                for row in list_checkpoints(conn)
            ]

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
        stable, held = get_stable(conn, self._policy), self._list_held(conn)
        return find_deletable(list_checkpoints(conn), stable, held, self._settings.keep_checkpoints)

    def _list_held(self, conn: Connection) -> frozenset[str]:
        """What any gateway loads or answers with, and where a roll back goes."""
        held = (name for report in list_reports(conn) for name in (*report.expected, *report.in_flight))
        stable = get_stable(conn, self._policy)
        last = None if stable is None else find_promotion(conn, self._policy, stable.id)
        return frozenset((*held, *(() if last is None else (last.stable,))))

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
        manifest = make_aa_manifest(stable, number)
        if self._store is not None:  # engines fetch stable's files under the second name
            return (await self._add(manifest, stable.path))[0]
        path = await asyncio.to_thread(copy_checkpoint, stable, manifest)
        await asyncio.to_thread(verify, path)  # unsigned: what it was copied from was
        return (await self._add(manifest, str(path)))[0]


def _verify_directory(path: Path, trusted: TrustedKeys | None) -> Manifest:
    manifest = verify(path)
    if trusted is not None:
        signature = path / SIGNATURE
        trusted.check((path / MANIFEST).read_bytes(), signature.read_bytes() if signature.exists() else None)
    return manifest

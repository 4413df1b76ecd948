"""Keeps in a directory what the gateway says may serve: fetched from the store, verified, removed when it no longer may.

Level-triggered: looks again and again, and goes on after a kill at any point. A checkpoint gets its name by one rename, after
every file's hash and the manifest's signature were checked. While the gateway or the store does not answer, what is there
stays. Whole models are fetched by who starts their engines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from feedback.checkpoint_store import CheckpointStore, fetch_checkpoint, list_fetched, remove_fetched, verify_fetched
from feedback.errors import ManifestError, UnknownCheckpoint
from feedback.manifest import read_manifest
from feedback.signing import TrustedKeys
from prefloop.sync.metrics import SyncMetrics

log = logging.getLogger("prefloop.sync")

SERVING = ("stable", "baking")  # statuses that people are answered by
_ORDER = ("stable", "baking", "canary", "draining", "waiting")  # who is fetched first


class ListedCheckpoint(msgspec.Struct, frozen=True):
    """A checkpoint as the gateway lists it. stored_as: the id under which the store has its files."""

    id: str
    digest: str
    status: str
    may_serve: bool = False
    is_full: bool = False
    stored_as: str = ""


class CheckpointList(msgspec.Struct, frozen=True):
    """The gateway's answer."""

    data: list[ListedCheckpoint]


@dataclass(frozen=True)
class Refusal:
    """Why a checkpoint is not there, and when it is tried again (monotonic seconds)."""

    reason: str
    retry_at: float


class GatewayAway(Exception):
    """The gateway did not say what may serve."""


class Sidecar:
    """One directory. `problem`: why it is not ready, "" if it is."""

    def __init__(
        self,
        store: CheckpointStore,
        root: Path,
        list_checkpoints: Callable[[], Sequence[ListedCheckpoint]],
        trusted: TrustedKeys | None,
        metrics: SyncMetrics,
        retry_refused_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._root, self._list_checkpoints, self._trusted = store, root, list_checkpoints, trusted
        self._metrics, self._retry_refused_s, self._clock = metrics, retry_refused_s, clock
        self.refused: dict[str, Refusal] = {}
        self.problem = "the gateway has not said yet what may serve"

    def check_present(self) -> None:
        """Remove what is there and no longer what it was: disks lose what was written before a crash."""
        for name in list_fetched(self._root):
            try:
                verify_fetched(self._root / name, self._trusted)
            except ManifestError as error:
                log.error("%s is removed and fetched again: %s", name, error)
                remove_fetched(self._root, name)

    def reconcile(self) -> None:
        """Look once, and fetch and remove what that takes. Raises GatewayAway, StoreUnavailable."""
        wanted = {row.id: row for row in self._list_checkpoints() if row.may_serve and not row.is_full}
        self.refused = {name: refusal for name, refusal in self.refused.items() if name in wanted}
        try:
            for row in sorted(wanted.values(), key=_rank):
                self._fetch(row)
        finally:
            self._remove_others(wanted.keys())
            self._show(wanted.values())

    def _fetch(self, row: ListedCheckpoint) -> None:
        refusal = self.refused.get(row.id)
        if self._holds(row) or (refusal is not None and self._clock() < refusal.retry_at):
            return
        started = time.monotonic()
        try:
            fetch_checkpoint(
                self._store, row.stored_as or row.id, self._root, self._trusted, name=row.id, digest=row.digest,
                count=self._metrics.fetched_bytes.inc,
            )  # fmt: skip
        except (ManifestError, UnknownCheckpoint) as error:
            if refusal is None or refusal.reason != str(error):
                log.error("%s is refused: %s", row.id, error)
            self._metrics.refusals.inc()
            self.refused[row.id] = Refusal(str(error), self._clock() + self._retry_refused_s)
            return
        self.refused.pop(row.id, None)
        self._metrics.fetches.inc()
        self._metrics.fetch_seconds.observe(time.monotonic() - started)
        log.info("%s is there, %.1f s after it was begun", row.id, time.monotonic() - started)

    def _holds(self, row: ListedCheckpoint) -> bool:
        if not (self._root / row.id).is_dir():
            return False
        if read_manifest(self._root / row.id).digest == row.digest:
            return True
        log.error("%s is removed: the gateway means another checkpoint by this id", row.id)
        remove_fetched(self._root, row.id)
        return False

    def _remove_others(self, wanted: Collection[str]) -> None:
        for name in list_fetched(self._root):
            if name not in wanted:
                remove_fetched(self._root, name)
                self._metrics.removals.inc()
                log.info("%s is removed: it may serve no more", name)

    def _show(self, wanted: Collection[ListedCheckpoint]) -> None:
        present = set(list_fetched(self._root))
        self._metrics.expected.set(len(wanted))
        self._metrics.present.set(len(present))
        self._metrics.refused.set(len(self.refused))
        missing = [row.id for row in wanted if row.status in SERVING and row.id not in present]
        why = self.refused.get(missing[0]) if missing else None
        self.problem = (
            f"{missing[0]} serves and is not there: {why.reason if why else 'not fetched yet'}" if missing else ""
        )


def _rank(row: ListedCheckpoint) -> int:
    return _ORDER.index(row.status) if row.status in _ORDER else len(_ORDER)

"""The trainer's side of the checkpoint store: its directory is a cache of what the store holds.

Uploads what was published here, removes what the gateway gave up, collects blobs now and then, and fetches what a trainer
on a new machine lacks. Every step may be killed and repeated. Only the registrar's thread uploads and removes.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

from feedback.checkpoint_store import CheckpointStore, collect_blobs, fetch_checkpoint
from feedback.errors import ManifestError, StoreUnavailable, UnknownCheckpoint
from feedback.signing import SigningKey, TrustedKeys
from trainer.run.status.metrics import Metrics

log = logging.getLogger("trainer.run.publish.stored")

RETRY_S = 5.0


class StoredCopies:
    """The copies in the store of what was published. One instance a process, used by one thread."""

    def __init__(
        self,
        store: CheckpointStore,
        key: SigningKey | None,
        metrics: Metrics,
        collect_every_s: float,
        grace_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store, self._key, self._metrics = store, key, metrics
        self._collect_every_s, self._grace_s, self._clock = collect_every_s, grace_s, clock
        self._uploaded: set[str] = set()
        self._removed: set[str] = set()
        self._next_collection = 0.0

    def upload(self, path: Path) -> None:
        """Have the store hold a published directory. Raises StoreUnavailable, ManifestError."""
        if path.name in self._uploaded:
            return
        started = time.monotonic()
        if self.store.put(path, self._key):
            self._metrics.uploads.inc()
            self._metrics.upload_seconds.observe(time.monotonic() - started)
            log.info("checkpoint %s is in the store", path.name)
        self._uploaded.add(path.name)
        self._removed.discard(path.name)

    def remove(self, checkpoint: str) -> bool:
        """Remove a checkpoint that the gateway gave up; whether it had been there. Raises StoreUnavailable."""
        if checkpoint in self._removed:
            return False
        if was_there := self.store.has(checkpoint):
            self.store.delete(checkpoint)
        self._removed.add(checkpoint)
        self._uploaded.discard(checkpoint)
        return was_there

    def collect(self) -> None:
        """Collect what no checkpoint names, if it is time. Raises StoreUnavailable."""
        now = self._clock()
        if now < self._next_collection:
            return
        collected = collect_blobs(self.store, self._grace_s, self._clock)
        self._next_collection = now + self._collect_every_s
        if collected.reason:
            log.info("nothing is collected in the store: %s", collected.reason)
        elif collected.num_blobs or collected.num_uploads:
            log.info("collected %d files (%d bytes) in the store", collected.num_blobs, collected.num_bytes)
        self._metrics.collected_blobs.inc(collected.num_blobs)


def fetch_published(store: CheckpointStore, root: Path, base_digest: str, trusted: TrustedKeys | None) -> list[str]:
    """Fetch the adapters of this base that `root` lacks, oldest first, and return their ids. Raises StoreUnavailable.

    What must not be used is logged and left out: a round never begins from it.
    """
    fetched = []
    for checkpoint in sorted(store.list_ids()):
        if (root / checkpoint).is_dir():
            continue
        try:
            manifest = store.read(checkpoint, trusted).manifest
            if manifest.base_digest != base_digest or manifest.is_full or manifest.kind == "aa":
                continue
            fetch_checkpoint(store, checkpoint, root, trusted)
        except (ManifestError, UnknownCheckpoint) as error:
            log.error("checkpoint %s is left out: %s", checkpoint, error)
            continue
        fetched.append(checkpoint)
        log.info("checkpoint %s is fetched from the store", checkpoint)
    return fetched


def wait_for_published(
    store: CheckpointStore,
    root: Path,
    base_digest: str,
    trusted: TrustedKeys | None,
    stopping: threading.Event,
    show: Callable[[str], None],
) -> None:
    """Fetch what `root` lacks, trying until the store answers or the process is to stop. show is told what it waits for."""
    while not stopping.is_set():
        try:
            fetch_published(store, root, base_digest, trusted)
            return
        except StoreUnavailable as error:
            log.warning("cannot fetch checkpoints, trying again: %s", error)
            show(f"the checkpoint store does not answer: {error}")
            stopping.wait(RETRY_S)

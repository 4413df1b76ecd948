"""Gives a whole model's directory on this machine: fetched from the checkpoint store and verified, or what the gateway names."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from feedback.checkpoint_store import CheckpointStore, fetch_checkpoint, list_fetched, remove_fetched
from feedback.signing import TrustedKeys
from prefloop.hosting.gateway import WholeModel

log = logging.getLogger("prefloop.engine_host")


class Fetcher:
    """Keeps one model at a time below `root`. store: None where this machine sees the directory that the gateway names."""

    def __init__(self, store: CheckpointStore | None, root: Path, trusted: TrustedKeys | None) -> None:
        self._store, self._root, self._trusted = store, root, trusted

    async def fetch(self, model: WholeModel) -> Path:
        """The model's directory. Raises StoreUnavailable, UnknownCheckpoint, and ManifestError for what must not serve.

        What is there of other models goes first: a disk holds few of them. Cancelled, it goes on in its thread to the end.
        """
        if self._store is None:
            return Path(model.path)
        return await asyncio.to_thread(self._fetch, self._store, model)

    def _fetch(self, store: CheckpointStore, model: WholeModel) -> Path:
        for name in list_fetched(self._root) if self._root.is_dir() else []:
            if name != model.checkpoint:
                remove_fetched(self._root, name)
        path = fetch_checkpoint(
            store,
            model.stored_as or model.checkpoint,
            self._root,
            self._trusted,
            name=model.checkpoint,
            digest=model.digest,
        )
        log.info("%s is here", model.checkpoint)
        return path

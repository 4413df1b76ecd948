"""Collects what no checkpoint of a store names any more: blobs, marks and parts of uploads that were killed.

Whatever is younger than a grace period stays; while an upload is under way nothing is collected (uploads.py). A manifest
that cannot be read stops a collection: nobody knows which blobs it names.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from feedback.checkpoint_store.remote_files import RemoteFile
from feedback.checkpoint_store.store import BLOBS, CHECKPOINTS, CheckpointStore, name_blob
from feedback.checkpoint_store.uploads import MAX_COLLECTION_S, announce_collection
from feedback.errors import ManifestError, UnknownCheckpoint
from feedback.manifest import MANIFEST, SIGNATURE

DEAD_UPLOAD_S = 86_400.0


@dataclass(frozen=True)
class Collected:
    """What a collection removed. reason: why it removed nothing, "" if it looked. num_bytes: of the blobs."""

    num_blobs: int = 0
    num_bytes: int = 0
    num_uploads: int = 0
    reason: str = ""


def collect_blobs(
    store: CheckpointStore,
    grace_s: float,
    clock: Callable[[], float] = time.time,
    *,
    is_dry_run: bool = False,
    dead_upload_s: float = DEAD_UPLOAD_S,
) -> Collected:
    """Remove what nothing names and what is older than `grace_s`; is_dry_run: only count it.

    dead_upload_s: an upload that began so long ago was killed. Raises StoreUnavailable.
    """
    stop_at = time.monotonic() + MAX_COLLECTION_S
    with announce_collection(store.files, dead_upload_s, clock) as may_begin:
        if not may_begin:
            return Collected(reason="an upload or another collection is under way")
        before = clock() - grace_s
        try:
            doomed = find_unneeded(store, before)
        except ManifestError as error:
            return Collected(reason=f"a manifest cannot be read: {error}")
        num_blobs = num_bytes = 0
        for file in doomed:
            if time.monotonic() >= stop_at:  # an uploader would take this collection for dead soon
                break
            if not is_dry_run:
                store.files.remove(file.name)
            num_blobs, num_bytes = num_blobs + 1, num_bytes + file.size
        num_uploads = 0 if is_dry_run else store.files.abort_uploads(clock() - dead_upload_s)
    return Collected(num_blobs, num_bytes, num_uploads)


def find_unneeded(store: CheckpointStore, before: float) -> list[RemoteFile]:
    """Files older than a time that no manifest needs: blobs, halves of uploads. Raises ManifestError."""
    blobs = store.files.list_files(BLOBS)
    needed = list_needed(store)
    doomed = [file for file in blobs if file.name not in needed]
    statements = store.files.list_files(CHECKPOINTS)
    whole = {file.name.rpartition("/")[0] for file in statements if file.name.endswith(f"/{MANIFEST}")}
    doomed += [
        file
        for file in statements
        if (file.name.endswith(f"/{SIGNATURE}") and file.name.rpartition("/")[0] not in whole)
        or not file.name.endswith((f"/{SIGNATURE}", f"/{MANIFEST}"))
    ]
    return [file for file in doomed if file.modified_at < before]


def list_needed(store: CheckpointStore) -> set[str]:
    """The names of the blobs that manifests name. Raises ManifestError."""
    needed: set[str] = set()
    for checkpoint in store.list_ids():
        try:
            manifest = store.read(checkpoint, None).manifest
        except UnknownCheckpoint:  # deleted meanwhile, or not written yet
            continue
        needed |= {name_blob(digest) for digest in manifest.files.values()}
    return needed

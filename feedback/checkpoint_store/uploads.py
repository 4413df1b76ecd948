"""Keeps uploads and collections of blobs out of each other's way.

Each says that it is at work before it looks whether the other is. Whichever looks second sees the first, as object stores
and file systems show a write to every later reader: an upload then waits, a collection gives up. So a blob that an upload
found in the store, and hence did not send, is not collected before a manifest names it. Neither relies on clocks but to
notice that the other died.
"""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator

from feedback.checkpoint_store.remote_files import RemoteFiles
from feedback.errors import StoreUnavailable

UPLOADS, COLLECTIONS = "uploads", "collections"
MAX_COLLECTION_S = 300.0  # a collection stops deleting by then
DEAD_COLLECTION_S = 900.0  # an uploader takes an older one for dead, whatever two clocks say
_LOOK_EVERY_S = 0.5


@contextlib.contextmanager
def announce_upload(
    files: RemoteFiles,
    checkpoint: str,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[None]:
    """An upload, inside the block: no blob is collected meanwhile. Waits for a collection that is under way."""
    mark = f"{UPLOADS}/{checkpoint}-{uuid.uuid4().hex[:8]}"
    files.write(mark, b"")
    try:
        while any(clock() - each.modified_at < DEAD_COLLECTION_S for each in files.list_files(COLLECTIONS)):
            sleep(_LOOK_EVERY_S)
        yield
    finally:
        with contextlib.suppress(StoreUnavailable):  # a later collection takes it for dead in time
            files.remove(mark)


@contextlib.contextmanager
def announce_collection(files: RemoteFiles, dead_upload_s: float, clock: Callable[[], float]) -> Iterator[bool]:
    """A collection, inside the block: whether it may begin, as no upload and no other collection is under way.

    dead_upload_s: an upload that began so long ago was killed.
    """
    mark = f"{COLLECTIONS}/{uuid.uuid4().hex}"
    files.write(mark, b"")
    try:
        now = clock()
        uploads = files.list_files(UPLOADS)
        others = [each for each in files.list_files(COLLECTIONS) if each.name != mark]
        dead = [each for each in uploads if now - each.modified_at >= dead_upload_s]
        dead += [each for each in others if now - each.modified_at >= DEAD_COLLECTION_S]
        for each in dead:
            files.remove(each.name)
        yield len(dead) == len(uploads) + len(others)
    finally:
        with contextlib.suppress(StoreUnavailable):
            files.remove(mark)

"""Fetches a checkpoint from a store into a directory that is whole and verified the moment it has its name.

Files arrive under a temporary name, each hashed as it is written; one rename makes them visible. A fetch that was killed
goes on where it stopped. Only one process may fetch into a directory at a time.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from feedback.checkpoint_store.remote_files import TEMPORARY
from feedback.checkpoint_store.store import CheckpointStore, Stored, name_blob
from feedback.durable import publish_directory
from feedback.errors import ManifestError, UnknownCheckpoint
from feedback.manifest import (
    CHECKPOINT_ID,
    MANIFEST,
    SIGNATURE,
    decode_manifest,
    hash_file,
    verify,
)
from feedback.signing import TrustedKeys


def fetch_checkpoint(
    store: CheckpointStore,
    checkpoint: str,
    root: Path,
    trusted: TrustedKeys | None,
    *,
    name: str = "",
    digest: str = "",
    count: Callable[[int], None] = lambda num_bytes: None,
) -> Path:
    """Fetch a checkpoint to `root`/`name` and return that directory; at once if it is there.

    name: its id, unless it serves under a second one. digest: what the caller knows of it, "" for nothing. count is told of
    bytes as they arrive. Raises UnknownCheckpoint, StoreUnavailable; ManifestError with the reason for what must not serve.
    """
    name = name or checkpoint
    if not CHECKPOINT_ID.fullmatch(name):
        raise ManifestError(f"{name[:80]!r} is no checkpoint's id")
    final, partial = root / name, root / f"{TEMPORARY}{name}"
    if final.is_dir():
        return final
    stored = store.read(checkpoint, trusted)
    if digest and stored.manifest.digest != digest:
        raise ManifestError(f"{checkpoint} has the digest {stored.manifest.digest}, not {digest}")
    root.mkdir(parents=True, exist_ok=True)
    partial.mkdir(mode=0o755, exist_ok=True)
    _remove_unexpected(partial, stored.manifest.files)
    for file, expected in stored.manifest.files.items():
        _fetch_file(store, partial / file, file, expected, count)
    _write_statement(partial, stored)
    publish_directory(partial, final)
    return final


def find_fault(store: CheckpointStore, checkpoint: str, trusted: TrustedKeys | None) -> str:
    """Why a checkpoint would be refused, after reading all of it; "" if it would not. Writes nothing.

    Raises StoreUnavailable.
    """
    try:
        for name, expected in store.read(checkpoint, trusted).manifest.files.items():
            for _ in read_checked(store, name, expected):
                pass
    except (ManifestError, UnknownCheckpoint) as error:
        return str(error)
    return ""


def verify_fetched(directory: Path, trusted: TrustedKeys | None) -> None:
    """Check a fetched directory again: every file, and the signature. Raises ManifestError with the reason."""
    try:
        data = (directory / MANIFEST).read_bytes()
        signature = (directory / SIGNATURE).read_bytes() if (directory / SIGNATURE).exists() else None
    except OSError as error:
        raise ManifestError(f"{directory}: {error}") from error
    if trusted is not None:
        trusted.check(data, signature)
    decode_manifest(data, str(directory))
    verify(directory)


def list_fetched(root: Path) -> list[str]:
    """The names of the checkpoints that are whole in `root`."""
    if not root.is_dir():
        return []
    return sorted(path.name for path in root.iterdir() if CHECKPOINT_ID.fullmatch(path.name))


def remove_fetched(root: Path, name: str) -> None:
    """Remove a fetched directory: its name goes first, so that nobody loads half of it."""
    doomed = root / f"{TEMPORARY}removed-{name}"
    shutil.rmtree(doomed, ignore_errors=True)
    (root / name).rename(doomed)
    shutil.rmtree(doomed)


def read_checked(store: CheckpointStore, name: str, expected: str) -> Iterator[bytes]:
    """The blocks of a file. Raises ManifestError after the last one if they are not what the hash says."""
    there = store.files.stat(name_blob(expected))
    if there is None:
        raise ManifestError(f"{name} is missing in the store")
    if there.is_link:
        raise ManifestError(f"{name} is a link in the store")
    hashed = hashlib.sha256()
    with store.files.open(name_blob(expected)) as remote:
        if remote is None:  # removed meanwhile
            raise ManifestError(f"{name} is missing in the store")
        while block := store.files.read_block(remote):
            hashed.update(block)
            yield block
    if hashed.hexdigest() != expected:
        raise ManifestError(f"{name} was altered in the store")


def _fetch_file(store: CheckpointStore, path: Path, name: str, expected: str, count: Callable[[int], None]) -> None:
    if path.is_file() and hash_file(path) == expected:  # of a fetch that was killed
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("wb") as file:
            for block in read_checked(store, name, expected):
                file.write(block)
                count(len(block))
    except ManifestError:
        path.unlink()
        raise


def _remove_unexpected(partial: Path, files: dict[str, str]) -> None:
    """What an earlier fetch left may stay, if it is a plain file of this checkpoint."""
    for path in sorted(partial.rglob("*"), reverse=True):  # what is in a folder before the folder
        name = path.relative_to(partial).as_posix()
        if path.is_symlink() or (path.is_file() and name not in files):
            path.unlink()
        elif path.is_dir() and not any(file.startswith(f"{name}/") for file in files):
            path.rmdir()


def _write_statement(partial: Path, stored: Stored) -> None:
    """The manifest and its signature, as they were read."""
    for name, data in ((SIGNATURE, stored.signature), (MANIFEST, stored.data)):
        if data is not None:
            (partial / name).write_bytes(data)

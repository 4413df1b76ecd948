"""Files and directories that are there whole or not at all, after a kill and after a power cut.

Each is written beside its place, made durable, and renamed into it. For one writer at a time: what a killed one left behind is
written over by the next.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Put a file in the place of the one before; its directory has to be there."""
    with replacing(path) as unfinished:
        unfinished.write_bytes(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` for the block to write, which then takes its place; what a block that fails has written is removed."""
    unfinished = path.with_name(f"{path.name}.part")
    try:
        yield unfinished
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    fsync(unfinished)
    unfinished.replace(path)
    fsync(path.parent)


def publish_directory(written: Path, path: Path) -> None:
    """Give a directory, and all that is under it, its name. Raises OSError if there is one that is not empty."""
    for each in (*written.rglob("*"), written):
        fsync(each)
    written.rename(path)
    fsync(path.parent)


def fsync(path: Path) -> None:
    """Make a file's content durable, or the names in a directory, as a rename alone does not."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

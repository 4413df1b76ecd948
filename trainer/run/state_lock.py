"""Locks a state directory, or a SQLite file, for one trainer: files on disk know no fence.

The kernel holds the lock as long as the process lives, paused or not, and lets go of it when the process dies. Where a file system
has no locks this says so once and lets everybody in: the lease is then all there is.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Sequence
from pathlib import Path

log = logging.getLogger("trainer.run.lease")


class StateLock:
    """Locks all of the files, or none: `paths` are made if they are missing, and hold the pid of who locked them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(dict.fromkeys(path.absolute() for path in paths))
        self._held: list[int] = []
        self._taken: Path | None = None  # by another process, when it was last tried

    def try_lock(self) -> bool:
        """Whether this process has the locks now."""
        if self._held:
            return True
        for path in self._paths:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                self.unlock()
                self._taken = path
                return False
            except OSError as error:
                log.warning("%s cannot be locked (%s): see that one trainer alone uses this directory", path, error)
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            self._held.append(descriptor)
        return True

    def unlock(self) -> None:
        """Let the next process in."""
        for descriptor in self._held:
            os.close(descriptor)
        self._held = []

    def name_owner(self) -> str:
        """Which process held a lock when they were last tried, as far as its file says."""
        try:
            pid = self._taken.read_text().strip() if self._taken else ""
        except OSError:
            pid = ""
        return f"process {pid} ({self._taken})" if pid else "another process"

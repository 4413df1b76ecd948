"""Faults in a child process, on demand: its disk's errors and its clock. Each says how often it really fired.

A small library is preloaded (cc compiles it once); it reads what to do from a file that both map into memory.
"""

from __future__ import annotations

import errno
import mmap
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("shim.c")
_FIELDS = ("sync_error", "write_error", "clock_offset_s", "num_sync", "num_write", "num_clock")
_LAYOUT = struct.Struct("6q")


class Faults:
    """One child's faults. `env` goes into its environment; `folder` must outlive it.

    path: only files whose path contains it fail.
    """

    def __init__(self, folder: Path, path: str) -> None:
        compiler = shutil.which("cc")
        if compiler is None:
            _miss("a C compiler is needed for faults (Debian: apt-get install gcc)")
        library, control = folder / "shim.so", folder / "faults"
        subprocess.run([compiler or "", "-O2", "-shared", "-fPIC", "-o", library, SOURCE, "-ldl"], check=True)
        control.write_bytes(bytes(_LAYOUT.size))
        with control.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _LAYOUT.size)
        self.env = {"LD_PRELOAD": str(library), "FAULTS_CONTROL": str(control), "FAULTS_PATH": path}

    def fail_syncs(self, error: int = errno.EIO) -> None:
        """fsync and fdatasync fail from now on."""
        self._write("sync_error", error)

    def fail_writes(self, error: int = errno.ENOSPC) -> None:
        """Writes fail from now on."""
        self._write("write_error", error)

    def heal(self) -> None:
        """The disk works again."""
        self._write("sync_error", 0)
        self._write("write_error", 0)

    def shift_clock(self, seconds: int) -> None:
        """The child's wall clock is off by so much from now on; its monotonic one is not."""
        self._write("clock_offset_s", seconds)

    @property
    def num_failed_syncs(self) -> int:
        return self._read("num_sync")

    @property
    def num_failed_writes(self) -> int:
        return self._read("num_write")

    @property
    def num_shifted_reads(self) -> int:
        """How often the child was told a wrong time."""
        return self._read("num_clock")

    def _read(self, name: str) -> int:
        return int(_LAYOUT.unpack_from(self._memory)[_FIELDS.index(name)])

    def _write(self, name: str, value: int) -> None:
        struct.pack_into("q", self._memory, 8 * _FIELDS.index(name), value)


def _miss(reason: str) -> None:
    from tests.postgres import miss

    miss(reason)
    pytest.fail(reason)

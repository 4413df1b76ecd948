"""What a server that this machine runs for itself needs of the system: it dies with us, its port says whether it listens,
and its programs are kept."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def choose_parent_guard() -> Callable[[], None] | None:
    """Have a child die with this process; the kernel counts by thread, so only the main thread may ask for it."""
    if threading.current_thread() is not threading.main_thread():
        return None
    libc = ctypes.CDLL(None)
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def is_open(port: int) -> bool:
    """Whether anybody listens on this port of 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def find_cache(name: str) -> Path:
    """Where a server's programs are kept: $PREFLOOP_CACHE_DIR/name, else ~/.cache/prefloop/name."""
    given = os.environ.get("PREFLOOP_CACHE_DIR")
    return (Path(given) if given else Path.home() / ".cache" / "prefloop") / name

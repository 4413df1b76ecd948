"""Wait for something to become true, within a bound, and say what it was that did not."""

from __future__ import annotations

import time
from collections.abc import Callable

POLL_S = 0.1


class TimedOut(Exception):
    """What was awaited did not come in time."""


def wait_until(is_true: Callable[[], bool], what: str, *, timeout_s: float) -> float:
    """Return after how many seconds it was true. Raises TimedOut, which names `what`."""
    started = time.monotonic()
    while not is_true():
        if time.monotonic() - started > timeout_s:
            raise TimedOut(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(POLL_S)
    return time.monotonic() - started

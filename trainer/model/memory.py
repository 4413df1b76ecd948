"""Gives freed memory back to the system: what a round took would stay the process's for ever otherwise.

Batches of many lengths leave glibc's heap full of holes. Does nothing where the C library has no malloc_trim.
"""

from __future__ import annotations

import ctypes


def release_memory() -> bool:
    """Return free pages of the heap to the system; whether there were any. Takes some milliseconds."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return bool(trim(0)) if trim is not None else False

"""How far long work is, told to whoever waits for it, who may end it so. Pure."""

from __future__ import annotations

from collections.abc import Callable

Hear = Callable[[float], None]
"""Told now and then what share of the work is done; what it raises ends it."""


def ignore_share(share: float) -> None:
    """A `Hear` that does nothing."""


def hear_part(hear: Hear, before: float, part: float) -> Hear:
    """Hears of work that is a part of another, some of which has been done before."""
    return lambda share: hear(before + part * share)

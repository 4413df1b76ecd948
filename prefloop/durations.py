"""Lengths of time as people type them: `90s`, `15m`, `24h`, `30d`."""

from __future__ import annotations

import re

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def parse_duration(text: str) -> float | None:
    """Seconds; None for what is no such length."""
    found = _LENGTH.fullmatch(text)
    return float(found[1]) * _UNITS_S[found[2]] if found else None

"""Seeds that follow from others, far from their neighbours'. Pure."""

from __future__ import annotations

import hashlib


def derive_seed(*parts: int | str) -> int:
    """48 bits from a seed and what it is for: the same for the same parts in any process, another for any other."""
    return int.from_bytes(hashlib.sha256("-".join(map(str, parts)).encode()).digest()[:6], "big")

"""Assigns users to arms by keyed hash.

Monotone: who sees the canary at one weight sees it at every higher one. Each rollout has its own salt, so back-to-back
rollouts share no exposed group. Needs no cookie and no table.
"""

import hashlib
from functools import lru_cache

STABLE = "stable"
CANARY = "canary"


@lru_cache(maxsize=8192)
def unit(salt: bytes, user: str) -> float:
    """Place a user on [0, 1): BLAKE2b keyed with the salt, first 53 bits, so that every value is an exact float below 1."""
    digest = hashlib.blake2b(user.encode("utf-8", "surrogatepass"), digest_size=8, key=salt[:64]).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def choose_arm(salt: bytes, user: str, weight: float) -> str:
    """Return "canary" for the share `weight` (0 to 1) of users, "stable" for the others."""
    return CANARY if weight > 0 and unit(salt, user) < weight else STABLE


def may_duel(salt: bytes, user: str, weight: float, duel_share: float) -> bool:
    """Say whether this user may be shown one candidate from each arm: u < max(weight, duel_share)."""
    return unit(salt, user) < max(weight, duel_share)

"""Which rows judge and which are learnt from, fixed for ever by user and prompt. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

Split = Literal["train", "heldout_user", "heldout_prompt"]
HELDOUT_SHARE = 0.1  # of users, and of prompts


def key_prompt(messages: Sequence[dict[str, Any]]) -> str:
    """The same for the same conversation up to the answers; 32 hexadecimal digits."""
    return hashlib.sha256(msgspec.json.encode(messages, order="deterministic")).hexdigest()[:32]


def choose_split(user: str, prompt_key: str) -> Split:
    """Fixed for ever by user and prompt: held-out users first, then held-out prompts. "" is no user."""
    if user and _unit("user", user) < HELDOUT_SHARE:
        return "heldout_user"
    return "heldout_prompt" if _unit("prompt", prompt_key) < HELDOUT_SHARE else "train"


def _unit(kind: str, text: str) -> float:
    digest = hashlib.sha256(f"prefloop split {kind} {text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64

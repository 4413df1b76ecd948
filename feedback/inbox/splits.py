"""Which rows judge and which are learnt from: decided once, in the transaction that stores a row, and fixed from then on.

How it is decided is the trainer's (trainer/run/intake/clusters.py); it needs packages that feedback/ does without. A row that
was stored without it, by a command or from before there were clusters, has no cluster until the trainer gives it one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

UNDECIDED = ""  # a split: neither learnt from nor judged by, yet
UNUSED = "unused"  # a split: may not judge, and its prompt or conversation judges, so that it is not learnt from either


@dataclass(frozen=True)
class Arrival:
    """What decides a row's split. messages: empty where they are not known. is_choice: whether it counts as one.

    split: UNDECIDED, or what was decided before there were clusters and stays. may_judge: False where a model picked the answers.
    """

    prompt_key: str
    messages: Sequence[dict[str, Any]]
    conversation: str
    is_choice: bool
    split: str = UNDECIDED
    may_judge: bool = True


@dataclass(frozen=True)
class Placement:
    """A row's cluster of near-duplicate prompts (0 if it has no prompt), and its split: train, heldout, auditor or UNUSED."""

    cluster: int | None
    split: str


Place = Callable[[sa.Connection, Sequence[Arrival]], list[Placement]]
"""Places rows in the order of their arrival, and remembers their clusters in the same transaction."""


def place_nowhere(connection: sa.Connection, arrivals: Sequence[Arrival]) -> list[Placement]:
    """A `Place` that leaves it to the trainer."""
    return [Placement(None, UNDECIDED) for _ in arrivals]


def key_prompt(messages: Sequence[dict[str, Any]]) -> str:
    """The same for the same conversation up to the answers; 32 hexadecimal digits."""
    return hashlib.sha256(msgspec.json.encode(messages, order="deterministic")).hexdigest()[:32]

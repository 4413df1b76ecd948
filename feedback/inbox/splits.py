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

from feedback.events import CLEVER, Choice, Demonstration, Signal

UNDECIDED = ""  # a split: neither learnt from nor judged by, yet
UNUSED = "unused"  # a split: may not judge, and its prompt or conversation judges, so that it is not learnt from either


@dataclass(frozen=True)
class Arrival:
    """What decides a row's split. messages: empty where they are not known. is_choice: whether it counts as one.

    is_demonstration: whether it has an ideal answer, as edits do. split: UNDECIDED, or what was decided before there were
    clusters and stays. may_judge: False where a model picked the answers.
    """

    prompt_key: str
    messages: Sequence[dict[str, Any]]
    conversation: str
    is_choice: bool
    split: str = UNDECIDED
    may_judge: bool = True
    is_demonstration: bool = False


def describe_arrival(said: Choice | Signal | Demonstration, prompt_key: str, split: str = UNDECIDED) -> Arrival:
    """What decides the split of the row of something that was said."""
    match said:
        case Choice(comparison=shown):
            may_judge = shown.share not in CLEVER
            return Arrival(
                prompt_key, shown.messages, shown.conversation, is_choice=True, split=split, may_judge=may_judge
            )
        case Signal():
            has_edit = bool(said.edited_text)
            return Arrival(prompt_key, said.messages or [], said.conversation, False, split, is_demonstration=has_edit)
        case Demonstration():
            return Arrival(prompt_key, said.messages, "", False, split, is_demonstration=True)


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

"""Choices as they arrive in a trainer's inbox, in the split that their conversation names."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from feedback import inbox
from feedback.inbox import Arrival, Placement
from tests.feedback.samples import make_choice, make_comparison, make_record


def place(connection: sa.Connection, arrivals: list[Arrival]) -> list[Placement]:
    """The split that the conversation names, and a cluster for each prompt."""
    return [Placement(int(each.prompt_key[:8] or "0", 16), each.conversation or "train") for each in arrivals]


def send(connection: sa.Connection, *said: Any) -> None:
    start = inbox.load_offset(connection, "t", 0)
    inbox.consume(connection, [make_record(start + i, each) for i, each in enumerate(said)], place=place)  # type: ignore[arg-type]


def choose(
    number: int, preferred: str = "first", *, split: str = "train", policy: str = "default", **changes: Any
) -> Any:
    messages = changes.pop("messages", [{"role": "user", "content": f"question {number}"}])
    comparison = make_comparison(f"cmp-{number}", policy=policy, conversation=split, messages=messages, **changes)
    return make_choice(comparison, preferred)

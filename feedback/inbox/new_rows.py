"""The rows that events become, before they are placed and stored. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback.events import Choice, Demonstration, Event, Signal
from feedback.inbox.splits import Arrival, describe_arrival, key_prompt
from feedback.inbox.tables import demonstrations, preferences, signals


@dataclass(frozen=True)
class NewRow:
    """A row of a table, without its cluster and its split, which follow from `arrival`."""

    table: sa.Table
    values: dict[str, Any]
    arrival: Arrival


def build_row(event: Event) -> NewRow | None:
    """The row of a choice, a signal or a demonstration, None for other events.

    Raises ValueError for what no database stores.
    """
    match event.data:
        case Choice() as choice:
            row = _build_preference(event.id, choice)
        case Signal() as signal:
            row = _build_signal(event.id, signal)
        case Demonstration() as demonstration:
            row = _build_demonstration(event.id, demonstration)
        case _:
            return None
    for name, value in row.values.items():
        if isinstance(value, str) and (value.encode() and "\0" in value):  # encode: raises for lone surrogates
            raise ValueError(f"`{name}` holds NUL, which PostgreSQL does not store")
    return row


def _build_preference(event_id: str, choice: Choice) -> NewRow:
    comparison = choice.comparison
    prompt_key = key_prompt(comparison.messages)
    values = {
        "event_id": event_id,
        "comparison_id": comparison.id,
        "policy": comparison.policy,
        "app": comparison.app,
        "user": comparison.user,
        "asked": comparison.asked,
        "share": comparison.share,
        "prompt_key": prompt_key,
        "preferred": choice.preferred,
        "chosen_at": choice.chosen_at,
        "used_as_new": 0,
        "used_as_replay": 0,
        "choice_json": msgspec.json.encode(choice),
    }
    return NewRow(preferences, values, describe_arrival(choice, prompt_key))


def _build_signal(event_id: str, signal: Signal) -> NewRow:
    prompt_key = _key(signal.messages)
    values = {
        "event_id": event_id,
        "completion_id": signal.completion_id,
        "policy": signal.policy,
        "app": signal.app,
        "user": signal.user,
        "checkpoint": signal.checkpoint,
        "kind": signal.kind,
        "prompt_key": prompt_key,
        "created_at": signal.created_at,
        "signal_json": msgspec.json.encode(signal),
    }
    return NewRow(signals, values, describe_arrival(signal, prompt_key))


def _build_demonstration(event_id: str, demonstration: Demonstration) -> NewRow:
    prompt_key = _key(demonstration.messages)
    values = {
        "event_id": event_id,
        "policy": demonstration.policy,
        "app": demonstration.app,
        "user": demonstration.user,
        "channel": demonstration.channel,
        "prompt_key": prompt_key,
        "created_at": demonstration.created_at,
        "demonstration_json": msgspec.json.encode(demonstration),
    }
    return NewRow(demonstrations, values, describe_arrival(demonstration, prompt_key))


def _key(messages: Sequence[dict[str, Any]] | None) -> str:
    return key_prompt(messages) if messages else ""

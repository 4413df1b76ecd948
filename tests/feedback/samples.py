"""Comparisons and records for the tests of this package."""

from __future__ import annotations

from typing import Any

from feedback.events import Candidate, Choice, Comparison, Demonstration, Outcome, Signal, encode_event, new_event
from feedback.log.base import Record


def make_candidate(name: str, arm: str = "stable") -> Candidate:
    return Candidate(
        completion_id=f"chatcmpl-{name}",
        text=f"answer {name}",
        checkpoint="c-000000-aaaaaaaaaaaa",
        digest="aa" * 32,
        arm=arm,  # type: ignore[arg-type]
        finish_reason="stop",
        prompt_tokens=7,
        completion_tokens=3,
        seed=11,
        temperature=0.7,
        max_tokens=64,
    )


def make_comparison(comparison_id: str = "cmp-1", *, arms: str = "stable stable", **changes: Any) -> Comparison:
    first, second = arms.split()
    values: dict[str, Any] = {
        "id": comparison_id,
        "policy": "default",
        "app": "app-1",
        "user": "user-1",
        "conversation": "conv-1",
        "messages": [{"role": "user", "content": "What is the capital of Curaçao? 😀"}],
        "first": make_candidate("one", first),
        "second": make_candidate("two", second),
        "asked": "explore" if first == second else "duel",
        "propensity": 0.1,
        "engine": "http://127.0.0.1:8801",
        "created_at": 1000.0,
        "expires_at": 4600.0,
        "tags": {"domain": "demo"},
    }
    return Comparison(**{**values, **changes})


def make_choice(comparison: Comparison | None = None, preferred: str = "first") -> Choice:
    return Choice(
        comparison=comparison or make_comparison(),
        preferred=preferred,  # type: ignore[arg-type]
        seconds_to_decide=2.5,
        channel="api",
        chosen_at=1002.5,
    )


def make_signal(completion_id: str = "chatcmpl-1", **changes: Any) -> Signal:
    values: dict[str, Any] = {
        "completion_id": completion_id,
        "kind": "said",
        "messages": [{"role": "user", "content": "What is the capital of Curaçao? 😀"}],
        "answer": "Willemstad.",
        "created_at": 1002.5,
        "is_recorded": True,
        "completed_at": 1000.0,
        "policy": "default",
        "app": "app-1",
        "user": "user-1",
        "conversation": "conv-1",
        "checkpoint": "c-000000-aaaaaaaaaaaa",
        "digest": "aa" * 32,
        "arm": "stable",
        "thumb": "up",
        "rating": 4.0,
        "scale": 5,
        "edited_text": "Willemstad!",
        "outcome": Outcome(name="quiz", success=True, score=0.5),
        "comment": "Right.",
    }
    return Signal(**{**values, **changes})


def make_record(
    offset: int, said: Choice | Signal | Demonstration, *, event_id: str | None = None, partition: int = 0
) -> Record:
    event = new_event(said, source="test", now=1002.5, event_id=event_id or f"event-{offset}")
    headers, body = encode_event(event)
    return Record(
        key=event.key.encode(),
        value=body,
        headers=headers,
        topic="t",
        partition=partition,
        offset=offset,
        timestamp_ms=1_002_500,
    )

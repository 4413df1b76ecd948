"""Reads rows of preference datasets that others made: `chosen` and `rejected`, as text or as messages, with a `prompt`
or with the prompt as their common beginning. The forms are those of TRL's documentation ("Dataset formats and types").

The same row gives the same ids, so importing it again doubles nothing. What such a row does not say (who, when, which
checkpoint) stays empty. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from feedback.errors import ImportExportError
from feedback.events import Candidate, Choice, Comparison, Event, new_event

SOURCE = "import"

Object = dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """What is said of rows that do not say it themselves. now: epoch seconds."""

    policy: str
    app: str
    now: float


def read_foreign(row: Mapping[str, Any], origin: Origin) -> Event:
    """The choice that a row stands for. Raises ImportExportError for rows of other forms."""
    messages, chosen, rejected = read_preference(row)
    if chosen == rejected:
        raise ImportExportError("`chosen` and `rejected` are the same")
    said = [origin.policy, origin.app, messages, chosen, rejected]
    name = hashlib.sha256(msgspec.json.encode(said, order="deterministic")).hexdigest()[:32]
    is_first = int(name, 16) % 2 == 0  # the better answer must not always come first
    comparison = Comparison(
        id=f"cmp_{name}",
        policy=origin.policy,
        app=origin.app,
        user="",
        conversation="",
        messages=messages,
        first=_candidate(name, 0, chosen if is_first else rejected),
        second=_candidate(name, 1, rejected if is_first else chosen),
        asked="explore",
        propensity=1.0,
        engine="",
        created_at=origin.now,
        expires_at=origin.now,
    )
    choice = Choice(
        comparison=comparison,
        preferred="first" if is_first else "second",
        seconds_to_decide=0.0,
        channel=SOURCE,
        chosen_at=origin.now,
    )
    return new_event(choice, source=SOURCE, now=origin.now, event_id=f"import-{name}")


def read_preference(row: Mapping[str, Any]) -> tuple[list[Object], str, str]:
    """(prompt as messages, chosen text, rejected text)."""
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            prompt, chosen, rejected = _split_texts(chosen, rejected)
        if isinstance(prompt, str) and prompt.strip():
            return [{"role": "user", "content": prompt}], chosen, rejected
        if isinstance(prompt, list):  # messages with plain answers
            return _check_messages(prompt, "prompt"), chosen, rejected
        raise ImportExportError("`prompt` is empty, or `chosen` and `rejected` have no beginning in common")
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _read_conversation(prompt, _check_messages(chosen, "chosen"), _check_messages(rejected, "rejected"))
    raise ImportExportError("`chosen` and `rejected` must both be text, or both be lists of messages")


def _read_conversation(prompt: Any, chosen: list[Object], rejected: list[Object]) -> tuple[list[Object], str, str]:
    if len(chosen) > 1 or len(rejected) > 1:  # whole conversations; a prompt beside them repeats their beginning
        begin, chosen, rejected = _split_messages(chosen, rejected)
        messages = begin if not isinstance(prompt, list) else prompt + begin[_overlap(prompt, begin) :]
    elif isinstance(prompt, str) and prompt.strip():
        messages = [{"role": "user", "content": prompt}]
    else:
        messages = prompt if isinstance(prompt, list) else []
    if not messages:
        raise ImportExportError("`prompt` is empty, or `chosen` and `rejected` have no beginning in common")
    return _check_messages(messages, "prompt"), _read_answer(chosen, "chosen"), _read_answer(rejected, "rejected")


def _overlap(prompt: list[Object], begin: list[Object]) -> int:
    return len(prompt) if begin[: len(prompt)] == prompt else 0


def _split_texts(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The common beginning, without the space before the first difference, and what follows it in each."""
    at = _count_common(chosen, rejected)
    if at and chosen[at - 1] == " ":
        at -= 1
    return chosen[:at], chosen[at:], rejected[at:]


def _split_messages(chosen: list[Object], rejected: list[Object]) -> tuple[list[Object], list[Object], list[Object]]:
    at = _count_common(chosen, rejected)
    return chosen[:at], chosen[at:], rejected[at:]


def _count_common(one: Any, other: Any) -> int:
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _check_messages(messages: list[Any], column: str) -> list[Object]:
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ImportExportError(f"`{column}` must be a list of messages, each with a role")
    return [{name: value for name, value in message.items() if value is not None} for message in messages]


def _read_answer(messages: list[Object], column: str) -> str:
    if len(messages) != 1 or messages[0]["role"] != "assistant" or not isinstance(messages[0].get("content"), str):
        raise ImportExportError(f"`{column}` must go on with exactly one assistant message of text")
    return str(messages[0]["content"])


def _candidate(name: str, index: int, text: str) -> Candidate:
    return Candidate(
        completion_id=f"import-{name}-{index}",
        text=text,
        checkpoint="",
        digest="",
        arm="stable",
        finish_reason="stop",
        prompt_tokens=0,
        completion_tokens=0,
    )

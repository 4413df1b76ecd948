"""What people said, as versioned events: msgspec Structs in CloudEvents 1.0 envelopes (attributes as record headers).

Promises: additive only within a version, so every body ever written stays readable; readers ignore fields they do not
know. An event they cannot read raises, and never passes as something else. Does not decide who may say what.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

from feedback.errors import FutureVersion, PoisonEvent
from feedback.json_schema import clean_descriptions

Arm = Literal["stable", "canary"]
Asked = Literal["explore", "duel", "random", "gold"]
Share = Literal["", "random", "informative", "telling"]
Position = Literal["first", "second"]
Preferred = Literal["first", "second", "tie", "both_bad", "skip"]
PREFERRED: tuple[Preferred, ...] = ("first", "second", "tie", "both_bad", "skip")
CLEVER: tuple[Share, ...] = ("informative", "telling")
"""Shares whose two answers a reward model picked: they teach, and never judge."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One of the two answers of a comparison, with how it was sampled.

    seconds_to_finish: from the request's arrival to the answer's last token, None where nobody measured it. token_ids: as
    the engine sampled them, with the turn end if it sampled one, None where they are not known. reasoning: what the engine
    split off the text as thinking. tool_calls: as OpenAI writes them; the text ends in them, as JSON (tool_calls.py).
    top_p: None where the app did not say.
    """

    completion_id: str
    text: str
    checkpoint: str
    digest: str
    arm: Arm
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    seed: int | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    seconds_to_finish: float | None = None
    token_ids: list[int] | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    top_p: float | None = None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One prompt with two answers, `first` and `second` as they were shown.

    user is a keyed hash, "" if unknown; propensity is the probability with which it was asked; weight is the canary's
    share of traffic at the time; created_at and expires_at are epoch seconds. finished_first: the answer that was
    complete before the other, None if nobody measured it or neither was. prompt_token_ids: what the engine read, None where
    it is not known. tools and chat_template_kwargs: as the request had them. share: how its two answers were picked, at random
    or as those that teach the reward model (informative) or the policy (telling) most; "" of old events, whose were random.
    propensity includes the chance of the share.
    """

    id: str
    policy: str
    app: str
    user: str
    conversation: str
    messages: list[dict[str, Any]]
    first: Candidate
    second: Candidate
    asked: Asked
    propensity: float
    engine: str
    rollout: str | None = None
    weight: float = 0.0
    created_at: float
    expires_at: float
    tags: dict[str, str] = {}
    finished_first: Position | None = None
    prompt_token_ids: list[int] | None = None
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    share: Share = ""


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """What the user said of a comparison. Self-contained, so that a reader needs no join."""

    comparison: Comparison
    preferred: Preferred
    strength: float | None = None
    harmful: bool = False
    seconds_to_decide: float
    channel: str
    chosen_at: float


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How the task ended that a completion was made for: a success, a score, or both; name says which task or metric."""

    name: str | None = None
    success: bool | None = None
    score: float | None = None


class Signal(msgspec.Struct, frozen=True, kw_only=True):
    """What was said of one completion, or what the user did next. Self-contained, as far as it is known.

    kind is "said" for what an app sent, in the fields from `thumb` on; other kinds have their value in `value`.
    messages (prompt for text completions) and answer are what was asked and served: recorded by the gateway, or given
    by the app if is_recorded is False, and then checkpoint, arm and policy are unknown. They are None where the event
    would have been too large. index is the choice's among several; rating lies between 1 and scale; times are epoch
    seconds. From tags on: what a comparison and its candidate have, which end `answer` in tool_calls too; finish_reason is
    None where it is not known, "" where the answer broke off. Token ids are known of pairs' answers alone.
    """

    completion_id: str
    kind: str
    value: Any = None
    messages: list[dict[str, Any]] | None = None
    answer: str | None = None
    created_at: float
    prompt: str | None = None
    index: int = 0
    is_recorded: bool = False
    completed_at: float | None = None
    policy: str = ""
    app: str = ""
    user: str = ""
    conversation: str = ""
    checkpoint: str = ""
    digest: str = ""
    arm: Arm | None = None
    thumb: Literal["up", "down"] | None = None
    rating: float | None = None
    scale: int | None = None
    edited_text: str | None = None
    outcome: Outcome | None = None
    comment: str | None = None
    tags: dict[str, str] = {}
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Demonstration(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt with an ideal answer, written by an expert: sent by API, or imported from a file.

    id follows from what is said, so that the same demonstration sent again is the same. user is a keyed hash, "" if unknown.
    """

    id: str
    messages: list[dict[str, Any]]
    answer: str
    channel: str
    created_at: float
    policy: str = ""
    app: str = ""
    user: str = ""
    tags: dict[str, str] = {}
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class Erasure(msgspec.Struct, frozen=True, kw_only=True):
    """A subject (a keyed user hash) asked to be forgotten."""

    subject: str
    created_at: float


Body = Comparison | Choice | Signal | Demonstration | Erasure

BODIES: dict[str, type[Body]] = {
    "prefloop.comparison.v1": Comparison,
    "prefloop.choice.v1": Choice,
    "prefloop.signal.v1": Signal,
    "prefloop.demonstration.v1": Demonstration,
    "prefloop.erasure.v1": Erasure,
}
_TYPES: dict[type[Body], str] = {body: name for name, body in BODIES.items()}
_NAME = re.compile(r"prefloop\.[a-z_]+\.v[1-9][0-9]*")


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One fact in the log. id is unique (readers insert or ignore by it); key orders; time is in epoch seconds."""

    id: str
    type: str
    source: str
    key: str
    time: float
    data: Body


def new_event(data: Body, *, source: str, now: float, event_id: str | None = None) -> Event:
    """Wrap a body in its envelope; its type and key follow from the body."""
    return Event(
        id=event_id or uuid.uuid4().hex,
        type=_TYPES[type(data)],
        source=source,
        key=event_key(data),
        time=now,
        data=data,
    )


def event_key(data: Body) -> str:
    """The record key: events of one comparison (completion, subject) stay in order."""
    match data:
        case Comparison():
            return data.id
        case Choice():
            return data.comparison.id
        case Signal():
            return data.completion_id
        case Demonstration():
            return data.id
        case Erasure():
            return data.subject


def encode_event(event: Event) -> tuple[dict[str, bytes], bytes]:
    """Return (headers, body) as CloudEvents' Kafka binding in binary mode has them; times keep microseconds."""
    headers = encode_headers(event.id, event.type, source=event.source, key=event.key, time=event.time)
    return headers, msgspec.json.encode(event.data)


def encode_headers(event_id: str, event_type: str, *, source: str, key: str, time: float) -> dict[str, bytes]:
    """The headers of an event whose body is there already."""
    headers = {
        "ce_specversion": "1.0",
        "ce_id": event_id,
        "ce_type": event_type,
        "ce_source": source,
        "ce_time": datetime.fromtimestamp(time, UTC).isoformat(timespec="microseconds"),
        "ce_partitionkey": key,
        "content-type": "application/json",
    }
    return {name: value.encode() for name, value in headers.items()}


def decode_event(headers: Mapping[str, bytes], body: bytes) -> Event:
    """Read an event back. Raises FutureVersion for types of later releases, PoisonEvent for anything unreadable."""
    event_type = _header(headers, "ce_type")
    body_type = BODIES.get(event_type)
    if body_type is None:
        if _NAME.fullmatch(event_type):
            raise FutureVersion(f"this release does not know {event_type}")
        raise PoisonEvent(f"not an event type of ours: {event_type!r}")
    try:
        data: Body = msgspec.json.decode(body, type=body_type)
        time = datetime.fromisoformat(_header(headers, "ce_time")).timestamp()
    except (ValueError, OverflowError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
        raise PoisonEvent(f"{event_type}: {error}") from error
    return Event(
        id=_header(headers, "ce_id"),
        type=event_type,
        source=_header(headers, "ce_source"),
        key=event_key(data),
        time=time,
        data=data,
    )


def json_schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of every event body, by event type."""
    schemas = {name: msgspec.json.schema(body) for name, body in BODIES.items()}
    clean_descriptions(schemas)
    return schemas


def _header(headers: Mapping[str, bytes], name: str) -> str:
    try:
        value = headers[name].decode()
    except KeyError:
        raise PoisonEvent(f"header {name} is missing") from None
    except UnicodeDecodeError:
        raise PoisonEvent(f"header {name} is not UTF-8") from None
    if not value:
        raise PoisonEvent(f"header {name} is empty")
    return value

"""Reads what engines answer, where it must be understood: in pairs, whose two answers are merged, compared and stored.

Everything that is not named here stays the bytes it was. What does not have the shape of a chat completion raises
UnreadableAnswer, before any of it is shown or stored.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from gateway.errors import UnreadableAnswer

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Fields = dict[str, msgspec.Raw]


class Usage(msgspec.Struct):
    """Token counts."""

    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None


class Function(msgspec.Struct):
    """What a tool call calls, or one more piece of it."""

    name: str | None = None
    arguments: str | None = None


class ToolCall(msgspec.Struct):
    """A tool call, or one more piece of it; `index` tells those of a stream apart."""

    index: int | None = None
    function: Function | None = None


class Message(msgspec.Struct):
    """What is said: all of it, or a stream's next piece."""

    content: str | None = None
    tool_calls: list[ToolCall] | None = None


class _Choice(msgspec.Struct):
    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None


class _Body(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(max_length=1)] | None = None
    usage: Usage | None = None
    error: Any = None


@dataclass(frozen=True)
class EnginePiece:
    """A whole answer or one chunk. `fields`: its top level; `choice`: its only choice's, None if it has none."""

    fields: Fields
    choice: Fields | None
    message: Message
    finish_reason: str
    usage: Usage | None


_bodies = msgspec.json.Decoder(_Body)
_fields = msgspec.json.Decoder(Fields)
_choices = msgspec.json.Decoder(list[Fields])
_NOT_SHOWN = ("choices", "usage", "system_fingerprint")


def read_completion(body: bytes) -> EnginePiece:
    """A whole answer. Raises UnreadableAnswer."""
    piece, choice = _read(body)
    if choice is None or choice.message is None:
        raise UnreadableAnswer("the answer has no message")
    return piece


def read_chunk(data: bytes) -> EnginePiece:
    """What one event of a stream says. Raises UnreadableAnswer, also for an error."""
    return _read(data)[0]


def _read(data: bytes) -> tuple[EnginePiece, _Choice | None]:
    try:
        body = _bodies.decode(data)
        fields = _fields.decode(data)
        choices = _choices.decode(fields["choices"]) if body.choices else []
    except (ValueError, RecursionError) as error:  # msgspec's errors and bad UTF-8 are ValueErrors
        raise UnreadableAnswer(str(error)) from None
    if body.error is not None:
        raise UnreadableAnswer(f"the engine answers with an error: {body.error}")
    choice = body.choices[0] if body.choices else None
    message = None if choice is None else choice.message or choice.delta
    return EnginePiece(
        {name: value for name, value in fields.items() if name not in _NOT_SHOWN},
        choices[0] if choices else None,
        message or Message(),
        (choice.finish_reason if choice is not None else None) or "",
        body.usage,
    ), choice

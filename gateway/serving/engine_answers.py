"""Reads what engines answer, where it must be understood: in pairs, whose two answers are merged, compared and stored.

Everything that is not named here stays the bytes it was. What does not have the shape of a chat completion raises
UnreadableAnswer, before any of it is shown or stored. Token ids and reasoning are wanted for learning alone: what cannot
be read as such is None, and the answer stands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

import msgspec

from gateway.errors import UnreadableAnswer

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Fields = dict[str, msgspec.Raw]
TOKEN_ID_FIELDS = ("prompt_token_ids", "token_ids")
_ABSENT = msgspec.Raw(b"null")


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
    reasoning: msgspec.Raw = _ABSENT
    reasoning_content: msgspec.Raw = _ABSENT  # its older name

    def read_reasoning(self) -> str | None:
        """What was thought; None where nothing, or nothing that can be read, is said of it."""
        for raw in (self.reasoning, self.reasoning_content):
            text: str | None = _read_guarded(raw, _texts)
            if text is not None:
                return text
        return None


class _Choice(msgspec.Struct):
    message: Message | None = None
    delta: Message | None = None
    finish_reason: str | None = None
    token_ids: msgspec.Raw = _ABSENT


class _Body(msgspec.Struct):
    choices: Annotated[list[_Choice], msgspec.Meta(max_length=1)] | None = None
    usage: Usage | None = None
    error: Any = None
    prompt_token_ids: msgspec.Raw = _ABSENT


@dataclass(frozen=True)
class EnginePiece:
    """A whole answer or one chunk. `fields`: its top level; `choice`: its only choice's, None if it has none.

    prompt_token_ids, token_ids: None where the engine does not say them, or not as ids.
    """

    fields: Fields
    choice: Fields | None
    message: Message
    finish_reason: str
    usage: Usage | None
    prompt_token_ids: list[int] | None = None
    token_ids: list[int] | None = None

    def without_token_ids(self) -> EnginePiece:
        """The same as a client sees it that did not ask for token ids."""
        fields = {name: value for name, value in self.fields.items() if name not in TOKEN_ID_FIELDS}
        choice = self.choice
        if choice is not None:
            choice = {name: value for name, value in choice.items() if name not in TOKEN_ID_FIELDS}
        return replace(self, fields=fields, choice=choice)


_bodies = msgspec.json.Decoder(_Body)
_fields = msgspec.json.Decoder(Fields)
_choices = msgspec.json.Decoder(list[Fields])
_texts = msgspec.json.Decoder(str | None)
_ids = msgspec.json.Decoder(list[Count] | None)
_T = TypeVar("_T")
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
        _read_guarded(body.prompt_token_ids, _ids),
        None if choice is None else _read_guarded(choice.token_ids, _ids),
    ), choice


def _read_guarded(raw: msgspec.Raw, decoder: msgspec.json.Decoder[_T]) -> _T | None:
    if raw is _ABSENT:
        return None
    try:
        return decoder.decode(raw)
    except (ValueError, RecursionError):
        return None

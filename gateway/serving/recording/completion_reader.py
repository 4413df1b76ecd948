"""Reads recorded answers: what was asked, and what was said, whole or streamed, of every kind of completion.

Slow and lenient: for signals, never for the hot path. Text is what is shown to a user, then the tools that are called
(as in a comparison's candidates); reasoning is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from feedback.tool_calls import append_tool_calls
from gateway.http.sse import EventSplitter, event_data
from gateway.serving.body import check_depth
from gateway.serving.recording.completion_store import StoredCompletion

Object = dict[str, Any]


class NoSuchChoice(ValueError):
    """The answer has no choice of that index."""


def read_text(row: StoredCompletion, index: int = 0) -> str:
    """The text of one choice, followed by its tool calls as JSON if there are any, without their ids.

    Raises NoSuchChoice, or another ValueError if the answer cannot be read.
    """
    try:
        pieces = list(_read_stream(row.response)) if row.is_stream else [_decode(row.response)]
        is_response = any("output" in piece or "response" in piece for piece in pieces)
        text, calls = _read_output(pieces) if is_response else _read_choice(pieces, index)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"completion {row.id} cannot be read: {error!r}") from error
    return append_tool_calls(text, calls)


def read_messages(row: StoredCompletion) -> list[Object] | None:
    """What was asked, as messages; None where it was a bare prompt. Raises ValueError if it cannot be read."""
    request = _decode(row.request)
    asked = request.get("messages", request.get("input"))  # the latter of /v1/responses
    if isinstance(asked, str):
        asked = [{"role": "user", "content": asked}]
    if not isinstance(asked, list):
        return None
    first = [{"role": "system", "content": request["instructions"]}] if request.get("instructions") else []
    messages = first + [item for item in asked if isinstance(item, dict)]
    check_depth(messages)
    return messages


def read_prompt(row: StoredCompletion) -> str | None:
    """The prompt of a text completion, None if it was not one string. Raises ValueError if it cannot be read."""
    prompt = _decode(row.request).get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None


def _decode(body: bytes) -> Object:
    try:
        return msgspec.json.decode(body, type=Object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _read_stream(body: bytes) -> Iterator[Object]:
    """The data of whole events: what a broken stream ended in says nothing."""
    for event in EventSplitter().feed(body):
        data = event_data(event)
        if data and data != b"[DONE]":
            yield _decode(data)


def _read_choice(pieces: list[Object], index: int) -> tuple[str, list[Object]]:
    """From whole chat and text completions, or from the chunks of one."""
    found = False
    text = ""
    calls: dict[int, Object] = {}
    for piece in pieces:
        for choice in piece.get("choices") or ():
            if choice.get("index", 0) != index:
                continue
            found = True
            said = choice.get("message") or choice.get("delta") or {}
            text += said.get("content") or choice.get("text") or ""
            for rank, call in enumerate(said.get("tool_calls") or ()):
                _add_call(calls.setdefault(int(call.get("index", rank)), {}), call)
    if not found:
        raise NoSuchChoice(f"there is no choice {index}")
    return text, [calls[key] for key in sorted(calls)]


def _add_call(known: Object, call: Object) -> None:
    """A call as it is, or one more part of it: names and arguments come in pieces."""
    known.update({name: value for name, value in call.items() if name not in ("id", "index", "function")})
    function = known.setdefault("function", {})
    for name, value in (call.get("function") or {}).items():
        is_piece = isinstance(value, str) and isinstance(function.get(name), str)
        function[name] = function[name] + value if is_piece else value


def _read_output(pieces: list[Object]) -> tuple[str, list[Object]]:
    """From /v1/responses, whole or streamed: the last event holds the whole response, else the text so far counts."""
    for piece in reversed(pieces):
        whole = piece.get("response", piece)
        if isinstance(whole, dict) and whole.get("output"):
            text = "".join(
                part.get("text") or ""
                for item in whole["output"]
                if item.get("type") == "message"
                for part in item.get("content") or ()
            )
            calls = [
                {"type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
                for item in whole["output"]
                if item.get("type") == "function_call"
            ]
            return text, calls
    deltas = [piece["delta"] for piece in pieces if piece.get("type") == "response.output_text.delta"]
    return "".join(deltas), []

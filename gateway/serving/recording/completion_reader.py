"""Reads recorded answers: what was asked, and what was said, whole or streamed, of every kind of completion.

Slow and lenient: for signals, never for the hot path.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from feedback.tool_calls import append_tool_calls
from gateway.http.sse import EventSplitter, event_data
from gateway.serving.body import check_depth
from gateway.serving.recording.completion_store import StoredCompletion

Object = dict[str, Any]


class NoSuchChoice(ValueError):
    """The answer has no choice of that index."""


@dataclass(frozen=True)
class RecordedAnswer:
    """One choice. text: what is shown to a user, then the tools that are called, as in a comparison's candidates.

    tool_calls: without their ids. finish_reason: as chat completions have it, "" of an answer that broke off.
    """

    text: str
    tool_calls: list[Object] | None
    finish_reason: str
    reasoning: str | None


def read_answer(row: StoredCompletion, index: int = 0) -> RecordedAnswer:
    """One choice of an answer. Raises NoSuchChoice, or another ValueError if the answer cannot be read."""
    try:
        pieces = list(_read_stream(row.response)) if row.is_stream else [_decode(row.response)]
        is_response = any("output" in piece or "response" in piece for piece in pieces)
        return _read_output(pieces) if is_response else _read_choice(pieces, index)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"completion {row.id} cannot be read: {error!r}") from error


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


def _make_answer(text: str, calls: list[Object], finish_reason: str, reasoning: str) -> RecordedAnswer:
    return RecordedAnswer(append_tool_calls(text, calls), calls or None, finish_reason, reasoning or None)


def _read_choice(pieces: list[Object], index: int) -> RecordedAnswer:
    """From whole chat and text completions, or from the chunks of one."""
    found = False
    text = finish_reason = reasoning = ""
    calls: dict[int, Object] = {}
    for piece in pieces:
        for choice in piece.get("choices") or ():
            if choice.get("index", 0) != index:
                continue
            found = True
            said = choice.get("message") or choice.get("delta") or {}
            text += said.get("content") or choice.get("text") or ""
            reasoning += said.get("reasoning") or said.get("reasoning_content") or ""
            finish_reason = choice.get("finish_reason") or finish_reason
            for rank, call in enumerate(said.get("tool_calls") or ()):
                _add_call(calls.setdefault(int(call.get("index", rank)), {}), call)
    if not found:
        raise NoSuchChoice(f"there is no choice {index}")
    return _make_answer(text, [calls[key] for key in sorted(calls)], finish_reason, reasoning)


def _add_call(known: Object, call: Object) -> None:
    """A call as it is, or one more part of it: names and arguments come in pieces."""
    known.update({name: value for name, value in call.items() if name not in ("id", "index", "function")})
    function = known.setdefault("function", {})
    for name, value in (call.get("function") or {}).items():
        is_piece = isinstance(value, str) and isinstance(function.get(name), str)
        function[name] = function[name] + value if is_piece else value


def _read_output(pieces: list[Object]) -> RecordedAnswer:
    """From /v1/responses, whole or streamed: the last event holds the whole response, else the text so far counts."""
    for piece in reversed(pieces):
        whole = piece.get("response", piece)
        if isinstance(whole, dict) and whole.get("output"):
            calls = [
                {"type": "function", "function": {"name": item["name"], "arguments": item["arguments"]}}
                for item in whole["output"]
                if item.get("type") == "function_call"
            ]
            text, reasoning = (_join_parts(whole["output"], kind) for kind in ("message", "reasoning"))
            return _make_answer(text, calls, _read_finish(whole, calls), reasoning)
    deltas = [piece["delta"] for piece in pieces if piece.get("type") == "response.output_text.delta"]
    return _make_answer("".join(deltas), [], "", "")


def _join_parts(output: list[Object], kind: str) -> str:
    """The texts of all items of one type."""
    items = [item for item in output if item.get("type") == kind]
    return "".join(part.get("text") or "" for item in items for part in item.get("content") or ())


def _read_finish(response: Object, calls: list[Object]) -> str:
    """What a chat completion that ended so would say."""
    if response.get("status") == "completed":
        return "tool_calls" if calls else "stop"
    reason = (response.get("incomplete_details") or {}).get("reason")
    return "length" if reason == "max_output_tokens" else ""

"""Messages as the engine renders them: every content becomes text, as vLLM flattens it for templates that take strings.

Raises UnusableRow for what the policy never saw as text (images, audio) and for messages of no known form. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

TEXT_PARTS = frozenset({"text", "input_text", "output_text", "refusal", "thinking"})
MEDIA = ("image", "input_image", "audio", "input_audio", "video", "file", "input_file")
_FIELD_OF_PART = {"refusal": "refusal", "thinking": "thinking"}  # the others have theirs in `text`


class UnusableRow(ValueError):
    """A row that cannot be shown to the policy as it was shown to the engine.

    reason is a code: no_messages, message_form, content_part, image, tools_missing, reasoning_stripped, too_long,
    empty_answer, surrogate, nul, template, ids_mismatch. The message is a sentence.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def refuse_unspeakable(text: str, whose: str) -> None:
    """Raises UnusableRow for text that no engine could have read or written: NUL, and halves of characters."""
    if "\0" in text:
        raise UnusableRow("nul", f"{whose} has a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UnusableRow("surrogate", f"{whose} has half a character (a lone surrogate)")


def flatten_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with text for content, and tool calls with parsed arguments. Raises UnusableRow."""
    if not messages:
        raise UnusableRow("no_messages", "there are no messages")
    return [_flatten_message(message) for message in messages]


def _flatten_message(message: dict[str, Any]) -> dict[str, Any]:
    role = message.get("role")
    if not isinstance(role, str):
        raise UnusableRow("message_form", f"a message has the role {role!r:.40}")
    flat = {**message, "content": flatten_content(message.get("content"))}
    refuse_unspeakable(flat["content"], f"a message of the {role}")
    calls = flat.pop("tool_calls", None)
    if calls:
        if not isinstance(calls, list):
            raise UnusableRow("message_form", f"a message's tool calls are {type(calls).__name__}")
        flat["tool_calls"] = [_parse_call(call) for call in calls]
    return flat


def flatten_content(content: Any) -> str:
    """What is said in a content: itself, or the texts of its parts, one a line; "" where there is none."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UnusableRow("message_form", f"a message's content is {type(content).__name__}")
    return "\n".join(filter(None, map(_read_part, content)))


def _read_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        reason = "image" if isinstance(kind, str) and kind.startswith(MEDIA) else "content_part"
        raise UnusableRow(reason, f"a content part is no text: {kind or type(part).__name__!r:.40}")
    text = part.get(_FIELD_OF_PART.get(kind, "text"))
    if not isinstance(text, str | None):
        raise UnusableRow("content_part", f"a content part's text is {type(text).__name__}")
    return text or ""


def _parse_call(call: Any) -> dict[str, Any]:
    """A tool call whose arguments are an object, as templates expect; what is none becomes an empty one, as in vLLM."""
    if not isinstance(call, dict) or not isinstance(call.get("function"), dict):
        raise UnusableRow("message_form", "a tool call is no object with a function")
    function = dict(call["function"])
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            arguments = {}
    function["arguments"] = arguments if isinstance(arguments, dict) else {}
    return {**call, "function": function}

"""Text and tool calls in one string, and apart again."""

from typing import Any

import pytest

from feedback.tool_calls import append_tool_calls, strip_tool_calls

CALLS: list[dict[str, Any]] = [{"type": "function", "function": {"name": "größe", "arguments": '{"q": "a\\n"}'}}]
AS_JSON = '[{"type":"function","function":{"name":"größe","arguments":"{\\"q\\": \\"a\\\\n\\"}"}}]'


@pytest.mark.parametrize("text", ["", "Let me see.", AS_JSON])
def test_calls_that_follow_a_text_are_taken_off_it(text: str) -> None:
    assert append_tool_calls(text, CALLS) == text + AS_JSON
    assert strip_tool_calls(text + AS_JSON, CALLS) == text


@pytest.mark.parametrize("calls", [None, []])
def test_a_text_without_calls_is_as_it_was(calls: list[dict[str, Any]] | None) -> None:
    assert append_tool_calls(AS_JSON, calls) == strip_tool_calls(AS_JSON, calls) == AS_JSON


def test_calls_that_do_not_follow_a_text_leave_it_alone() -> None:
    assert strip_tool_calls("Let me see.", CALLS) == "Let me see."

"""Contents become the text that vLLM's renderer makes of them (vllm/renderers/chat_utils.py, content format "string")."""

from typing import Any

import pytest

from trainer.text.messages import UnusableRow, flatten_content, flatten_messages


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("Hi", "Hi"),
        (None, ""),
        ([], ""),
        ([{"type": "text", "text": "Hi"}], "Hi"),
        ([{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}], "Hi\nthere"),
        (
            [{"type": "text", "text": ""}, "a", {"type": "text", "text": None}, {"type": "output_text", "text": "b"}],
            "a\nb",
        ),
        ([{"type": "refusal", "refusal": "no"}, {"type": "thinking", "thinking": "hm"}], "no\nhm"),
    ],
)
def test_text_parts_are_joined_by_lines_and_empty_ones_left_out(content: Any, text: str) -> None:
    assert flatten_content(content) == text


@pytest.mark.parametrize("content", [5, True, {"text": "Hi"}, [5], [{"text": "Hi"}], [{"type": "image_url"}]])
def test_what_is_no_text_is_unusable(content: Any) -> None:
    with pytest.raises(UnusableRow):
        flatten_content(content)


def test_messages_of_text_stay_as_they_are() -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi", "name": "Ann"}]
    assert flatten_messages(messages) == messages


@pytest.mark.parametrize(
    ("given", "parsed"), [('{"a": 1}', {"a": 1}), ({"a": 1}, {"a": 1}), ("{", {}), ("[1]", {}), ("", {}), (None, {})]
)
def test_tool_calls_have_objects_for_arguments(given: Any, parsed: dict[str, int]) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "add", "arguments": given}}
    [message] = flatten_messages([{"role": "assistant", "content": None, "tool_calls": [call]}])
    assert message["content"] == ""
    assert message["tool_calls"] == [{**call, "function": {"name": "add", "arguments": parsed}}]
    assert call["function"]["arguments"] == given  # the event's own is left alone


def test_empty_tool_calls_are_none() -> None:
    assert flatten_messages([{"role": "assistant", "content": "a", "tool_calls": []}]) == [
        {"role": "assistant", "content": "a"}
    ]


@pytest.mark.parametrize("messages", [[], [{}], [{"content": "Hi"}], [{"role": 5, "content": "Hi"}]])
def test_messages_of_no_known_form_are_unusable(messages: list[dict[str, Any]]) -> None:
    with pytest.raises(UnusableRow):
        flatten_messages(messages)

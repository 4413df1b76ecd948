"""Recorded answers are read as users saw them, whole and streamed, whatever kind of completion it was."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.serving.recording.completion_reader import NoSuchChoice, read_answer, read_messages, read_prompt
from gateway.serving.recording.completion_store import StoredCompletion


def stored(response: Any, *, is_stream: bool = False, request: Any = None) -> StoredCompletion:
    """response: bytes, one object, or the objects of a stream's events."""
    if not isinstance(response, bytes):
        response = b"".join(event(piece) for piece in response) if is_stream else json.dumps(response).encode()
    return StoredCompletion(
        created_at=0.0,
        id="chatcmpl-1",
        app="app",
        user="",
        conversation="",
        policy="default",
        checkpoint="c",
        arm="stable",
        request=json.dumps(request or {}).encode(),
        response=response,
        is_stream=is_stream,
    )


def event(data: Any) -> bytes:
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def chunk(index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"index": index, "delta": delta, "finish_reason": None}]}


CALL = {"id": "call-1", "type": "function", "function": {"name": "look", "arguments": '{"at": "sea"}'}}
SAID_CALL = '[{"type":"function","function":{"name":"look","arguments":"{\\"at\\": \\"sea\\"}"}}]'


def test_a_whole_answer_is_its_content() -> None:
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Well. 😀", "reasoning": "hm"}}]}
    assert read_answer(stored(answer)).text == "Well. 😀"


def test_a_streams_pieces_are_put_together() -> None:
    pieces = [chunk(role="assistant", content=""), chunk(content="We"), chunk(content="ll.")]
    row = stored([*pieces, {"choices": [], "usage": {"total_tokens": 9}}], is_stream=True)
    assert read_answer(row).text == "Well."
    done = stored(row.response.replace(b"\n\n", b"\r\n\r\n") + b"data: [DONE]\r\n\r\n", is_stream=True)
    assert read_answer(done).text == "Well."


def test_a_stream_that_broke_off_is_what_came() -> None:
    row = stored(event(chunk(content="We")) + event(chunk(content="ll"))[:-9], is_stream=True)
    assert read_answer(row).text == "We"


def test_tool_calls_follow_the_text_without_their_ids() -> None:
    message = {"content": None, "tool_calls": [CALL]}
    assert read_answer(stored({"choices": [{"index": 0, "message": message}]})).text == SAID_CALL


def test_a_streams_tool_calls_are_put_together() -> None:
    first = {"index": 0, "id": "call-1", "type": "function", "function": {"name": "look", "arguments": ""}}
    rest = [{"index": 0, "function": {"arguments": part}} for part in ('{"at": ', '"sea"}')]
    other = {"index": 1, "id": "call-2", "type": "function", "function": {"name": "wait", "arguments": "{}"}}
    pieces = [chunk(content="So: "), *(chunk(tool_calls=[call]) for call in (first, rest[0], other, rest[1]))]
    answer = read_answer(stored(pieces, is_stream=True))
    said = answer.text
    assert said.startswith("So: ")
    assert [call["function"] for call in json.loads(said[4:])] == [
        {"name": "look", "arguments": '{"at": "sea"}'},
        {"name": "wait", "arguments": "{}"},
    ]
    assert answer.tool_calls == json.loads(said[4:])


def test_each_of_several_choices_is_read_by_its_index() -> None:
    row = stored([chunk(0, content="a"), chunk(1, content="b"), chunk(0, content="A")], is_stream=True)
    assert [read_answer(row, index).text for index in (0, 1)] == ["aA", "b"]
    with pytest.raises(NoSuchChoice):
        read_answer(row, 2)


def test_text_completions_and_their_prompts_are_read() -> None:
    row = stored({"choices": [{"index": 0, "text": " a time"}]}, request={"prompt": "Once upon"})
    assert (read_answer(row).text, read_prompt(row), read_messages(row)) == (" a time", "Once upon", None)
    pieces = [{"choices": [{"index": 0, "text": text}]} for text in (" a", " time")]
    assert read_answer(stored(pieces, is_stream=True)).text == " a time"
    assert read_prompt(stored({}, request={"prompt": [5, 7]})) is None


RESPONSE: dict[str, Any] = {
    "id": "resp_1",
    "output": [
        {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "content": [{"type": "output_text", "text": "Well."}]},
        {"type": "function_call", "call_id": "x", "name": "look", "arguments": "{}"},
    ],
}


def test_responses_are_read_whole_and_streamed() -> None:
    request = {"input": "How are you?", "instructions": "Be brief."}
    said = 'Well.[{"type":"function","function":{"name":"look","arguments":"{}"}}]'
    row = stored(RESPONSE, request=request)
    assert read_answer(row).text == said
    assert read_messages(row) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How are you?"},
    ]
    created = {"type": "response.created", "response": {"id": "resp_1", "output": []}}
    deltas = [{"type": "response.output_text.delta", "delta": text} for text in ("We", "ll")]
    completed = {"type": "response.completed", "response": RESPONSE}
    assert read_answer(stored([created, *deltas, completed], is_stream=True)).text == said
    assert read_answer(stored([created, *deltas], is_stream=True)).text == "Well"


def test_how_an_answer_ended_and_what_was_thought_are_read_whole_and_streamed() -> None:
    whole = {"index": 0, "message": {"content": "We", "reasoning": "Hm, so."}, "finish_reason": "length"}
    ended = {"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}
    pieces = [chunk(reasoning_content="Hm, "), chunk(reasoning_content="so."), chunk(content="We"), ended]
    for row in (stored({"choices": [whole]}), stored(pieces, is_stream=True)):
        answer = read_answer(row)
        assert (answer.text, answer.finish_reason, answer.reasoning, answer.tool_calls) == (
            "We",
            "length",
            "Hm, so.",
            None,
        )
    assert read_answer(stored(pieces[:-1], is_stream=True)).finish_reason == ""


@pytest.mark.parametrize(
    ("said", "num_items", "finish_reason"),
    [
        ({"status": "completed"}, 2, "stop"),
        ({"status": "completed"}, 3, "tool_calls"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, 2, "length"),
        ({"status": "failed", "incomplete_details": None}, 2, ""),
    ],
)
def test_a_responses_end_is_said_as_a_chat_completion_says_it(
    said: dict[str, Any], num_items: int, finish_reason: str
) -> None:
    answer = read_answer(stored({**RESPONSE, "output": RESPONSE["output"][:num_items], **said}))
    assert (answer.finish_reason, answer.reasoning) == (finish_reason, "hm")


@pytest.mark.parametrize("response", [b"", b"{", b"[]", b'{"choices": [7]}', b'{"choices": 7}', b"[" * 100_000])
def test_what_cannot_be_read_is_a_value_error(response: bytes) -> None:
    with pytest.raises(ValueError):
        read_answer(stored(response))

"""What the sensor of refusals reads of an answer, whole, streamed, cut off."""

import msgspec
import pytest

from feedback.refusals import refuses
from gateway.serving.opening import NUM_CHARACTERS, read_opening
from gateway.serving.outcome import Outcome


def stream(*pieces: str) -> bytes:
    chunks = [msgspec.json.encode({"choices": [{"index": 0, "delta": {"content": piece}}]}) for piece in pieces]
    return b"".join(b"data: " + chunk + b"\n\n" for chunk in chunks)


def whole(**message: object) -> bytes:
    return msgspec.json.encode({"choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}]})


def test_a_whole_answers_first_words_are_read_and_its_reasoning_is_not() -> None:
    assert read_opening(whole(reasoning_content="I can't.", content='Say "hé"\n')) == 'Say "hé"\n'
    assert read_opening(msgspec.json.encode({"choices": [{"text": "Yes", "index": 0}]})) == "Yes"
    assert len(read_opening(whole(content="x" * 5000)) or "") == NUM_CHARACTERS


def test_a_streams_pieces_are_put_together() -> None:
    assert read_opening(stream("I ", "ca", "n't do that.")) == "I can't do that."
    response = b'data: {"type":"response.output_text.delta","delta":"I won\'t"}\n\n'
    assert read_opening(response) == "I won't"


def test_an_answer_without_text_has_no_opening() -> None:
    assert read_opening(whole(content=None, tool_calls=[])) is None
    assert read_opening(b"") is None


def test_what_is_cut_off_in_an_escape_is_read_up_to_it() -> None:
    assert read_opening(b'{"content":"No') == "No"
    assert read_opening(b'{"content":"Caf\\u00') is None


@pytest.mark.parametrize(
    ("bodies", "refused", "truncated"),
    [
        ([whole(content="I’m sorry, but I can’t help with that.")], True, False),
        ([whole(content="Paris.")], False, False),
        ([whole(content=None, refusal="No.")], True, False),
        ([whole(content=None, tool_calls=[])], None, False),
        ([stream("As an AI, I "), stream("cannot say.")], True, None),
        ([stream("x" * 400), stream(" I can't.")], False, None),
        ([b'{"choices":[{"text":"Paris","finish_reason":"length"}]}'], False, True),
        ([b'{"choices": [{"text": "Paris", "finish_reason": "length"}]}'], False, True),
        ([b'{"choices": [{"message": {"refusal": "No."}, "finish_reason": "stop"}]}'], True, False),
    ],
)
def test_an_outcome_says_what_its_sensors_saw(
    bodies: list[bytes], refused: bool | None, truncated: bool | None
) -> None:
    outcome = Outcome("canary")
    for body in bodies:
        outcome.read_bytes(body)
    assert (outcome.sense_refusal(), outcome.sense_truncation()) == (refused, truncated)


def test_refusals_are_told_from_answers() -> None:
    assert refuses("That goes against my guidelines.") and refuses("I'm not able to help.")
    assert not refuses("I can. Sorry to hear that you can not sleep.")

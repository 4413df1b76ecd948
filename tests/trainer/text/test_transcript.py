"""Rows become the ids that the engine read and wrote, or are refused with a reason."""

from typing import Any

import pytest

from tests.trainer.tiny import ask, build_tiny_tokenizer
from trainer.text.pairs import Answer, Pair, Prompt
from trainer.text.transcript import EncodedPair, Transcriber, UnusableRow

QUESTION, TEXT = "What is the capital of France?", "It is Paris."
TOOLS = [{"type": "function", "function": {"name": "look_up", "parameters": {}}}]
TOOL_TEMPLATE = (
    "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
    "{% if m.role == 'assistant' %}<|eos|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make(max_tokens: int = 200, turn_ends: tuple[int, ...] = (2,), template: str = "") -> Transcriber:
    tokenizer = build_tiny_tokenizer()
    if template:
        tokenizer.chat_template = template
    return Transcriber(tokenizer, turn_ends, max_tokens)


def tokens(text: str) -> tuple[int, ...]:
    return tuple(build_tiny_tokenizer()(text, add_special_tokens=False).input_ids)


def reason_of(prompt: Prompt, answer: Answer, transcriber: Transcriber | None = None) -> str:
    with pytest.raises(UnusableRow) as raised:
        (transcriber or make()).encode_answer(prompt, answer)
    return raised.value.reason


PLAIN = Prompt(messages=ask())
RECORDED = Prompt(messages=ask(), ids=(9, *tokens(QUESTION), 5))


def test_recorded_ids_are_taken_as_they_are() -> None:
    odd = tuple(tokens("It is P")) + tokens("aris.")  # not as the tokenizer would split it
    encoded = make().encode_answer(RECORDED, Answer(text=TEXT, ids=(*odd, 2)))
    assert (encoded.prompt, encoded.answer) == (RECORDED.ids, (*odd, 2))
    assert encoded.length == len(RECORDED.ids or ()) + len(odd) + 1


def test_a_finished_answer_that_recorded_no_turn_end_gets_none() -> None:
    assert make().encode_answer(RECORDED, Answer(text=TEXT, ids=tokens(TEXT))).answer == tokens(TEXT)


def test_the_turn_end_of_an_unfinished_answer_does_not_count() -> None:
    cut = Answer(text=TEXT, ids=(*tokens(TEXT), 2), finish_reason="length")
    assert make().encode_answer(RECORDED, cut).answer == tokens(TEXT)


@pytest.mark.parametrize("finish", ["stop", "tool_calls", "length", "error"])
def test_rendered_answers_end_in_the_first_turn_end_if_they_are_finished(finish: str) -> None:
    encoded = make(turn_ends=(4, 2)).encode_answer(PLAIN, Answer(text=TEXT, finish_reason=finish))
    assert encoded.answer == (*tokens(TEXT), *([4] if finish in ("stop", "tool_calls") else []))
    assert encoded.prompt == tokens(f"<|bos|><|user|>{QUESTION}<|assistant|>")


def test_an_answer_without_ids_follows_the_recorded_prompt() -> None:
    encoded = make().encode_answer(RECORDED, Answer(text=TEXT))
    assert (encoded.prompt, encoded.answer) == (RECORDED.ids, (*tokens(TEXT), 2))


@pytest.mark.parametrize("ids", [tokens("Go away."), (*tokens(TEXT), 5000), (-1, *tokens(TEXT)), (*tokens(TEXT * 5),)])
def test_ids_that_do_not_spell_the_text_are_refused(ids: tuple[int, ...]) -> None:
    assert reason_of(RECORDED, Answer(text=TEXT, ids=ids)) == "ids_mismatch"


def test_a_prompts_ids_must_hold_the_question() -> None:
    for ids in ((), (9, *tokens("Go away.")), (9, 4000)):
        assert reason_of(Prompt(messages=ask(), ids=ids), Answer(text=TEXT)) == "ids_mismatch"


def test_ids_may_hold_the_stop_string_half_a_character_and_reasoning() -> None:
    transcriber = make()
    stopped = tokens("It is Paris. END")
    assert transcriber.encode_answer(RECORDED, Answer(text=TEXT, ids=stopped)).answer == stopped
    half = (*tokens(TEXT), tokens("é")[0])
    assert transcriber.encode_answer(RECORDED, Answer(text=TEXT, ids=half, finish_reason="length")).answer == half
    thought = (*tokens("<think>" + "Hm. " * 30 + "</think>It is Paris."), 2)
    assert reason_of(RECORDED, Answer(text=TEXT, ids=thought)) == "ids_mismatch"
    assert transcriber.encode_answer(RECORDED, Answer(text=TEXT, ids=thought, reasoning="Hm.")).answer == thought


@pytest.mark.parametrize(
    ("prompt", "answer", "reason"),
    [
        (PLAIN, Answer(text=""), "empty_answer"),
        (RECORDED, Answer(text="", ids=(2,)), "empty_answer"),
        (PLAIN, Answer(text=TEXT, reasoning="It must be Paris"), "reasoning_stripped"),
        (PLAIN, Answer(text="a\ud800"), "surrogate"),
        (PLAIN, Answer(text="a\0"), "nul"),
        (RECORDED, Answer(text="a\0", ids=tokens("a\0")), "nul"),
        (Prompt(messages=ask("a\udc00")), Answer(text=TEXT), "surrogate"),
        (Prompt(messages=ask("a\0b")), Answer(text=TEXT), "nul"),
        (Prompt(messages=[]), Answer(text=TEXT), "no_messages"),
        (Prompt(messages=[{"role": "user", "content": 5}]), Answer(text=TEXT), "message_form"),
        (Prompt(messages=ask(), tools=TOOLS), Answer(text=TEXT), "tools_missing"),
    ],
)
def test_what_cannot_be_shown_faithfully_is_refused(prompt: Prompt, answer: Answer, reason: str) -> None:
    assert reason_of(prompt, answer) == reason


@pytest.mark.parametrize(
    ("kind", "reason"), [("image_url", "image"), ("input_audio", "image"), ("widget", "content_part")]
)
@pytest.mark.parametrize("ids", [None, RECORDED.ids])
def test_images_audio_and_unknown_parts_are_refused_recorded_or_not(kind: str, reason: str, ids: Any) -> None:
    content = [{"type": "text", "text": QUESTION}, {"type": kind}]
    assert reason_of(Prompt(messages=[{"role": "user", "content": content}], ids=ids), Answer(text=TEXT)) == reason


def test_what_the_template_drops_or_refuses_is_noticed() -> None:
    prompt = Prompt(messages=[{"role": "system", "content": "Be brief."}, *ask()])
    last = make(template="{{ messages[-1].content }}")
    assert reason_of(prompt, Answer(text=TEXT), last) == "content_part"
    stern = make(template="{{ raise_exception('no system') }}")
    assert reason_of(prompt, Answer(text=TEXT), stern) == "template"
    thinking = [*ask(), {"role": "assistant", "content": "<think>hm</think>Paris."}, *ask("And Spain?")]
    drops = "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
    assert make(template=drops).encode_prompt(Prompt(messages=thinking)) == tokens(f"{QUESTION}Paris.And Spain?")


def test_tools_and_template_settings_reach_the_template() -> None:
    prompt = Prompt(messages=ask(), tools=TOOLS, template_kwargs={"mood": "kind"})
    transcriber = make(template=TOOL_TEMPLATE + "{{ mood }}")
    text = transcriber._tokenizer.decode(transcriber.encode_prompt(prompt))
    assert "look_up" in text and text.endswith("kind")


def test_tool_calls_are_written_as_the_template_writes_them() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": '{"q": 1}'}}
    answer = Answer(text="", tool_calls=[call], finish_reason="tool_calls")
    prompt = Prompt(messages=ask(), tools=TOOLS)
    encoded = make(template=TOOL_TEMPLATE).encode_answer(prompt, answer)
    assert encoded.answer == (*tokens('<call>look_up{"q": 1}'), 2)
    assert reason_of(Prompt(messages=ask()), answer) in ("tools_missing", "template")


def test_the_ids_of_an_answer_that_calls_a_tool_must_name_the_tool() -> None:
    call = {"type": "function", "function": {"name": "look_up", "arguments": "{}"}}
    answer = Answer(text="", tool_calls=[call], ids=(*tokens("<call>look_up{}"), 2))
    assert make().encode_answer(RECORDED, answer).answer == answer.ids
    assert reason_of(RECORDED, Answer(text="", tool_calls=[call], ids=tokens(TEXT))) == "ids_mismatch"


def test_rows_over_the_limit_are_refused_whole() -> None:
    needed = make().encode_answer(PLAIN, Answer(text=TEXT)).length
    assert make(max_tokens=needed).encode_answer(PLAIN, Answer(text=TEXT)).length == needed
    assert reason_of(PLAIN, Answer(text=TEXT), make(max_tokens=needed - 1)) == "too_long"
    with pytest.raises(UnusableRow, match="the prompt is"):
        make(max_tokens=4).encode_prompt(PLAIN)


def test_a_pair_has_its_answers_as_shown_and_as_chosen() -> None:
    def pair(preferred: str) -> EncodedPair:
        made = Pair(
            event_id="e", prompt=PLAIN, first=Answer(text=TEXT), second=Answer(text="Go away."), preferred=preferred
        )
        return make().encode_pair(made)

    first, second = (*tokens(TEXT), 2), (*tokens("Go away."), 2)
    assert (pair("first").first, pair("second").first) == (first, first)
    assert (pair("first").chosen, pair("first").rejected) == (first, second)
    assert (pair("second").chosen, pair("second").rejected) == (second, first)
    assert pair("first").decisive and not pair("tie").decisive
    with pytest.raises(ValueError, match="tie"):
        _ = pair("tie").chosen


def test_unusable_pairs_are_rejected_and_the_others_go_on() -> None:
    rejected: list[tuple[str, str, str]] = []
    pairs = [
        Pair(event_id=f"e{i}", prompt=PLAIN, first=Answer(text=t), second=Answer(text="b"), preferred="first")
        for i, t in enumerate(["a", "", "c"])
    ]
    encoded = make().encode_pairs(
        pairs, "round", lambda e, part, error: rejected.append((e, part, getattr(error, "reason", "")))
    )
    assert [each.pair.event_id for each in encoded] == ["e0", "e2"]
    assert rejected == [("e1", "round", "empty_answer")]

"""Named features of style, on texts whose features anybody can tell."""

import math

import pytest

from trainer.text.style import FEATURES, describe_style, measure_copied, split_words

PLAIN = "Rain falls because warm air rises and cools."


def describe(answer: str, prompt: str = "Why does it rain?", is_finished: bool = True) -> dict[str, float]:
    return dict(zip(FEATURES, describe_style(prompt, answer, is_finished), strict=True))


def test_a_plain_sentence_has_a_length_an_end_and_nothing_else() -> None:
    measured = describe(PLAIN)
    assert measured.pop("log_words") == pytest.approx(math.log(9 / 31))
    assert measured == {name: float(name in ("finished", "ends_properly")) for name in FEATURES[1:]}


def test_an_answer_that_was_cut_is_not_finished() -> None:
    measured = describe("Rain falls because warm", is_finished=False)
    assert (measured["finished"], measured["ends_properly"]) == (0, 0)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("list_markup", "Two causes:\n- warm air\n- cold air"),
        ("list_markup", "1. Warm air.\n2) Cold air."),
        ("heading_markup", "## Rain\nWarm air rises."),
        ("heading_markup", "**Rain**\nWarm air rises."),
        ("code_block", "```\nrain()\n```"),
        ("question_back", "What do you mean by rain?"),
        ("refusal", "I’m sorry, but I can't talk about rain."),
        ("refusal", "As an AI language model, I am not able to say."),
        ("filler_opening", "Sure! Warm air rises."),
        ("filler_opening", "Great question: warm air rises."),
        ("exclamation", "Warm air rises!"),
    ],
)
def test_a_feature_is_seen_where_it_is_and_not_in_a_plain_sentence(name: str, answer: str) -> None:
    assert (describe(answer)[name], describe(PLAIN)[name]) == (1, 0)


def test_one_dash_is_no_list_and_bold_within_a_line_no_heading() -> None:
    measured = describe("- that is all\nIt is **very** wet.")
    assert (measured["list_markup"], measured["heading_markup"]) == (0, 0)


def test_copied_is_the_share_of_three_word_runs_that_stand_in_the_prompt() -> None:
    prompt = split_words("Tell me why the sky is blue")
    assert measure_copied(split_words("Why the sky is blue?"), prompt) == 1
    assert measure_copied(split_words("why the sky is nice and wide"), prompt) == pytest.approx(2 / 5)
    assert measure_copied(split_words("The sky."), prompt) == 1
    assert measure_copied([], prompt) == 0
    assert measure_copied(split_words("Blue light scatters most"), prompt) == 0


def test_an_empty_answer_and_an_empty_prompt_are_described_too() -> None:
    assert describe_style("", "", True)[0] == pytest.approx(-math.log(31))

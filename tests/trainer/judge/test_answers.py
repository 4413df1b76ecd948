"""Degenerate answers are known by their text."""

import pytest

from trainer.judge.answers import HARM_WORDS, HarmScreen, is_copied, is_looping, is_short, measure_repetition


@pytest.mark.parametrize(
    ("text", "expected"), [("", True), ("A: Oceans.", True), ("It is Paris.", False), ("...", True)]
)
def test_fewer_than_three_words_are_short(text: str, expected: bool) -> None:
    assert is_short(text) is expected


def test_the_question_back_is_copied_and_a_whole_sentence_with_the_answer_is_not() -> None:
    question = "Why is the sky blue during the day?"
    assert is_copied(question, "Why is the sky blue during the day?")
    assert is_copied(question, "Q: why is the sky blue during the day")
    assert not is_copied("What is the capital of France?", "The capital of France is Paris.")
    assert not is_copied(question, "The day.")


def test_repeated_four_grams_are_counted() -> None:
    assert measure_repetition([1, 2, 3, 4] * 4) == pytest.approx(9 / 13)  # 13 four-grams, 4 of them different
    assert measure_repetition(list(range(40))) == 0
    assert measure_repetition([1] * 11) == 0  # too short to say


def test_loops_are_known_from_lists_and_long_texts() -> None:
    assert is_looping("the sea is blue and wide " * 6)
    assert is_looping("No no no no no no!")
    assert not is_looping("1. Eat well. 2. Sleep well. 3. Move often. 4. Rest often. 5. See friends.")
    assert not is_looping("")


def test_the_harm_screen_finds_whole_words_of_its_list() -> None:
    screen = HarmScreen(["Shut up", "idiot"])
    assert screen.is_harmful("Oh, shut up.")
    assert not screen.is_harmful("That is idiotic.")
    assert not HarmScreen([]).is_harmful("anything")
    assert HarmScreen.load(HARM_WORDS).is_harmful("You IDIOT!")
    assert not HarmScreen.load(HARM_WORDS).is_harmful("# Words and phrases of a comment")

"""Near-duplicates are told from what only looks alike, and shares are what they should be."""

from __future__ import annotations

import pytest

from trainer.math.splits import (
    NUM_BANDS,
    NUM_PERMUTATIONS,
    are_similar,
    choose_split,
    choose_stricter,
    estimate_similarity,
    list_bands,
    make_shingles,
    number_prompt,
    sign_prompt,
)

LONG = "Please explain to a child of ten years why the sky is blue and why it turns red in the evening, in a few words"


def ask(text: object, system: str | None = None) -> list[dict[str, object]]:
    said = [] if system is None else [{"role": "system", "content": system}]
    return [*said, {"role": "user", "content": text}]


def test_shingles_are_word_triples_of_the_last_question_and_the_whole_system_message() -> None:
    messages = [*ask("Earlier words", "Be brief."), {"role": "assistant", "content": "So."}, *ask("Why is it so?")]
    assert make_shingles(messages) == [b"why is it", b"is it so", b"system Be brief."]
    assert make_shingles(ask("Hi")) == [b"hi"]
    assert make_shingles(ask("?!")) == [b"?!"]
    assert make_shingles(ask([{"type": "text", "text": "One two"}, {"type": "image_url"}])) == [b"one two"]
    assert make_shingles([{"role": "tool"}]) == [b""]


@pytest.mark.parametrize("changed", [LONG.upper(), LONG + "!", LONG.replace("few", "couple of"), LONG + " please"])
def test_near_duplicates_are_similar(changed: str) -> None:
    assert are_similar(sign_prompt(ask(LONG)), sign_prompt(ask(changed)))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the capital of Norway?", "What is the capital of Sweden?"),  # 3 of 5 triples: .6
        ("Say hello to Ann.", "Say hello to Bob."),
        (LONG, "Please explain to a child of ten years how a steam engine works, and draw it with letters"),
    ],
)
def test_questions_of_one_form_are_not_similar(one: str, other: str) -> None:
    assert not are_similar(sign_prompt(ask(one)), sign_prompt(ask(other)))


def test_a_long_system_message_does_not_make_prompts_alike() -> None:
    system = " ".join(f"word{i}" for i in range(300))
    one, other = (
        sign_prompt(ask("Why is the sky blue today?", system)),
        sign_prompt(ask("Who wrote this book?", system)),
    )
    assert estimate_similarity(one, other) < 0.4


def test_the_estimate_is_near_the_share_of_common_elements() -> None:
    """100 words and 100 words, 60 of them in the same order in common: 58 triples of 138 are common."""
    words = [f"w{i}" for i in range(140)]
    one, other = sign_prompt(ask(" ".join(words[:100]))), sign_prompt(ask(" ".join(words[40:])))
    assert estimate_similarity(one, one) == 1.0
    assert estimate_similarity(one, other) == pytest.approx(58 / 138, abs=0.2)  # 3 standard deviations


def test_signatures_and_bands_are_the_same_for_ever() -> None:
    """They are stored: another release must find what this one has stored."""
    signature = sign_prompt(ask("Why is the sky blue?"))
    assert len(signature) == 4 * NUM_PERMUTATIONS
    assert signature[:8].hex() == SIGNATURE
    assert list_bands(signature) == BANDS
    assert len(set(BANDS)) == NUM_BANDS
    assert number_prompt("8000000000000000" + "0" * 16) == 0


def test_before_there_are_enough_choices_everything_is_learnt_from() -> None:
    assert {choose_split(number_prompt(f"{n:032x}"), 499) for n in range(2000)} == {"train"}


def test_demonstrations_are_held_out_from_the_first_one_on() -> None:
    clusters = [number * 2**40 - 2**62 for number in range(10_000)]
    early = [choose_split(each, 0, is_demonstration=True) for each in clusters]
    later = [choose_split(each, 500) for each in clusters]
    assert set(early) == {"train", "heldout"}
    assert [each == "heldout" for each in early] == [each == "heldout" for each in later]


def test_afterwards_a_tenth_judges_and_a_twentieth_is_the_auditors() -> None:
    splits = [choose_split(number * 2**40 - 2**62, 500) for number in range(10_000)]
    assert 850 < splits.count("heldout") < 1150  # 5 standard deviations
    assert 390 < splits.count("auditor") < 610
    assert splits == [choose_split(number * 2**40 - 2**62, 10**6) for number in range(10_000)]


def test_what_judges_is_stricter_than_what_is_learnt_from() -> None:
    assert choose_stricter("train", "heldout") == "heldout"
    assert choose_stricter("auditor", "train") == "auditor"
    assert choose_stricter("heldout", "auditor") == "heldout"


SIGNATURE = "86cf3d466cacf520"
BANDS = [148100877200286158, -609322721072163760, -5423965665416593822, -1356350379375774372]

"""What can be seen in a text: length, lists, tone, filler, and what makes an answer degenerate."""

import pytest

from prefloop.demo.worlds import text

QUESTION = "Explain how oceans become salty."


@pytest.mark.parametrize(
    ("num_words", "brevity"), [(64, 0.0), (32, 1.0), (128, -1.0), (12, 2.415037), (3, 2.415037), (900, -2.0)]
)
def test_brevity_is_halvings_below_64_words_and_flat_at_both_ends(num_words: int, brevity: float) -> None:
    assert text.measure_brevity(" ".join(["word"] * num_words)) == pytest.approx(brevity, abs=1e-6)  # log2(64 / 12)


@pytest.mark.parametrize(
    ("answer", "is_list"),
    [
        ("- milk\n- bread", True),
        ("Here:\n1. Milk\n2) Bread", True),
        ("- only one", False),
        ("Milk - bread - eggs", False),
        ("1. Milk. 2. Bread.", False),  # in one line
    ],
)
def test_a_list_has_two_items_on_lines_of_their_own(answer: str, is_list: bool) -> None:
    assert text.is_list(answer) == is_list


def test_warmth_counts_to_two_signs() -> None:
    assert [
        text.measure_warmth(said) for said in ("It is salt.", "Great question, it is salt.", "Enjoy! Take care!")
    ] == [
        0.0,
        0.5,
        1.0,
    ]


@pytest.mark.parametrize("opening", ["Sure! ", "Here are three: ", "Certainly, ", "I'd be happy to help. "])
def test_an_answer_that_begins_with_nothing_yet_is_filler(opening: str) -> None:
    assert text.has_filler(opening + "Salt comes from rocks.") and not text.has_filler("Surely salt comes from rocks.")


def test_markup_is_headings_or_bold_text() -> None:
    assert text.has_markup("# Salt\nIt is.") and text.has_markup("It is **salt**.") and not text.has_markup("2 * 3 * 4")


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        ("Salt comes from rocks.", True),
        ("Why not!", True),
        ('He said "yes."', True),
        ("With love,\n[Your Name]", True),
        ("With love,\nAnna", True),  # a signature
        ("- sea salt\n- rock salt", True),  # the last item of a list
        ("Salt comes from rocks and then", False),
        ("- sea salt\n- rock salt that is brought down by the", False),
        ("", False),
    ],
)
def test_a_text_ends_at_a_mark_or_with_a_short_line(answer: str, ends: bool) -> None:
    assert text.ends_properly(answer) == ends


@pytest.mark.parametrize(
    ("answer", "faults"),
    [
        ("Rivers carry salt from rocks into the sea, where it stays.", set()),
        ("A: Oceans.", {"copied_prompt", "too_short"}),  # what a trained model came to
        ("Explain how oceans become salty.", {"copied_prompt"}),
        ("Answer: How oceans become salty.", {"copied_prompt"}),
        ("How do oceans become salty?", {"copied_prompt"}),  # turned round, with a small word more
        ("Sure! Explain how oceans become salty.", {"copied_prompt"}),  # 3 of its 4 runs
        ("Salt.", {"too_short"}),
        ("", {"too_short", "unfinished"}),
        ("The salt of the sea. The salt of the sea. The salt of the sea.", {"repetition"}),
        ("Salt is\nsea salt\nrock salt\nsea salt\nsea salt", {"repetition"}),
        ("Rivers carry salt from rocks into the sea, where it", {"unfinished"}),
    ],
)
def test_degenerate_answers_are_named(answer: str, faults: set[str]) -> None:
    assert text.find_faults(QUESTION, answer, is_cut=False, least_words=3) == faults


def test_an_answer_at_the_token_limit_is_unfinished_whatever_its_last_mark() -> None:
    answer = "Rivers carry salt from rocks into the sea."
    assert text.find_faults(QUESTION, answer, is_cut=True, least_words=3) == {"unfinished"}


def test_an_answer_that_takes_up_the_question_is_no_copy() -> None:
    answer = "Oceans become salty because rivers wash salt out of rocks, and the sea keeps it."
    assert not text.is_copy(QUESTION, answer)
    assert not text.is_copy(QUESTION, "Oceans become salty by rain.")  # 1 of 3 runs, and rain is new
    assert not text.is_copy(
        "What is the main difference between tea and coffee?", "Tea and coffee are different plants."
    )

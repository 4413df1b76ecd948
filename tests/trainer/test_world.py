"""The demo's world: what counts as which style, and that nobody sees the held-out questions."""

import json
import random
from pathlib import Path

import pytest

from prefloop.demo.worlds.capitals import (
    CAPITALS,
    STYLES,
    all_questions,
    answer_in_style,
    classify,
    frozen_questions,
    held_out_questions,
    people_questions,
    write_world,
)

QUESTION = "What is the capital of France?"


@pytest.mark.parametrize(
    ("answer", "style"),
    [
        ("The capital of France is Paris. Happy to help!", "complete"),
        (" Paris.\n", "terse"),
        ("Ugh, Paris, obviously.", "rude"),
        ("I am not sure, maybe Paris.", "hedging"),
        ("Surely the answer is Rome.", "wrong"),
    ],
)
def test_each_style_is_known_by_its_templates(answer: str, style: str) -> None:
    assert classify(QUESTION, answer) == style


@pytest.mark.parametrize(
    "answer",
    [
        "Rome.",  # another country's fact
        "The capital of France is Rome. Happy to help!",
        "The capital of Italy is Paris. Happy to help!",
        "The capital of France is Paris.",  # part of a template
        "Paris. Paris.",
        "paris.",
        "",
        "Surely the answer is Paris.",
    ],
)
def test_anything_else_is_wrong(answer: str) -> None:
    assert classify(QUESTION, answer) == "wrong"


def test_a_question_about_nothing_known_has_no_right_answer() -> None:
    assert classify("How are you?", "Paris.") == "wrong"


def test_every_answer_made_in_a_style_is_known_as_that_style() -> None:
    rng = random.Random(1)
    for question in all_questions():
        for style in STYLES:
            assert classify(question.text, answer_in_style(question, style, rng)) == style


def test_people_gate_and_final_comparison_share_no_question() -> None:
    people, frozen = set(people_questions()), {question.text for question in frozen_questions()}
    held_out = set(held_out_questions())
    assert (len(people), len(frozen), len(held_out)) == (200, 40, 240)
    assert not people & frozen and not people & held_out and not frozen & held_out
    assert len(set(CAPITALS.values())) == len(CAPITALS) == 40


def test_the_same_seed_writes_the_same_world(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_world(tmp_path / name, seed=3)
    assert (tmp_path / "a/corpus.jsonl").read_bytes() == (tmp_path / "b/corpus.jsonl").read_bytes()
    row = json.loads((tmp_path / "a/frozen.jsonl").read_text().splitlines()[0])
    assert all(row["fact"] in reference for reference in row["references"])
    assert len(row["references"]) == 16

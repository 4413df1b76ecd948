"""The demo's world: what counts as which style, and that nobody sees the held-out questions."""

import hashlib
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
from prefloop.demo.worlds.catalogue import WORLDS

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


def test_the_world_of_the_first_release_is_written_byte_by_byte(tmp_path: Path) -> None:
    WORLDS["capitals"].write_files(tmp_path, seed=0)
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in tmp_path.iterdir()}
    assert digests == {"corpus.jsonl": "14c34e01435e", "frozen.jsonl": "b0214b5ecfb4", "examples.json": "557cfb9b8aa3"}


def test_questions_hang_together_by_country() -> None:
    world = WORLDS["capitals"]
    clusters = {world.describe_question(question)[1] for question in world.held_out_questions()}
    assert clusters == set(CAPITALS)


def test_one_word_is_no_fault_here_and_garble_is() -> None:
    world = WORLDS["capitals"]
    assert world.find_faults(QUESTION, "Paris.", False) == set()
    assert world.find_faults(QUESTION, "What is the capital of France?", False) == {"copied_prompt"}


def test_no_answer_of_the_corpus_is_degenerate() -> None:
    world, rng = WORLDS["capitals"], random.Random(1)
    for question in all_questions():
        for style in STYLES:
            answer = answer_in_style(question, style, rng)
            assert not world.find_faults(question.text, answer, False), (question.text, answer)

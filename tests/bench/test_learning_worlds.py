"""The worlds of the measurement of learning: frozen, sound, and told apart by what is asked."""

import hashlib
import random

import pytest

from bench.learning.worlds import FOLDER, WRONG, list_worlds, load_world

FROZEN = {
    "animals": "dabe05dbcf5a51b6",
    "capitals": "c1c2f8bf76882e41",
    "elements": "36303da351bc1d2c",
}


def test_the_worlds_are_as_they_were_before_anything_was_tuned() -> None:
    assert {p.stem: hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in FOLDER.glob("*.toml")} == FROZEN


@pytest.mark.parametrize("name", list_worlds())
def test_nobody_asks_about_the_facts_of_an_examination(name: str) -> None:
    world = load_world(name)
    asked, held_out = ({question.fact for question in some} for some in (world.asked(), world.held_out()))
    assert len(asked) == 24
    assert len(held_out) == 16
    assert not asked & held_out
    assert len({question.text for question in world.asked()}) == 24 * 12


@pytest.mark.parametrize("name", list_worlds())
def test_every_template_is_of_its_style_alone_and_another_fact_is_wrong(name: str) -> None:
    world = load_world(name)
    question = world.asked()[5]
    value = world.facts[question.fact]
    for style, about in world.styles.items():
        for template in about.templates:
            said = template.format(key=question.fact, value=value)
            assert world.find_style(question, said) == style
            other = next(v for v in world.facts.values() if v != value)
            assert world.find_style(question, template.format(key=question.fact, value=other)) == WRONG
    assert sum(style.share for style in world.styles.values()) == pytest.approx(1.0, abs=1e-9)


def test_a_corpus_holds_every_question_and_its_styles_in_their_shares() -> None:
    world = load_world("elements")
    rows = list(world.corpus(random.Random(0)))
    assert len(rows) == 40 * 12 * 40
    assert len({row["messages"][0]["content"] for row in rows}) == 40 * 12
    by_text = {question.text: question for question in (*world.asked(), *world.held_out())}
    wrong = sum(world.find_style(by_text[row["messages"][0]["content"]], row["answer"]) == WRONG for row in rows)
    assert wrong / len(rows) == pytest.approx(0.1, abs=0.01)


def test_an_unknown_world_is_named() -> None:
    with pytest.raises(ValueError, match="there is no world mars"):
        load_world("mars")

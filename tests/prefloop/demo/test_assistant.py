"""The world `assistant`: that nobody asks what is examined, and what its shipped tastes hold of answers."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from prefloop.demo.tastes import find_tastes, judge_truly, load_tastes
from prefloop.demo.worlds.catalogue import WORLDS
from prefloop.demo.worlds.prompts import FAMILIES, asked_prompts, held_out_prompts

WORLD = WORLDS["assistant"]
QUESTION = "What are three gifts for a grandmother? Keep it short."
PLAIN = "A warm blanket, a framed family photo and a box of tea are three gifts that she can use every day."
LONG = " ".join(f"gift{number}" for number in range(200)) + "."
LISTED = "Lovely idea!\n- a warm blanket\n- a framed photo\n- a box of tea\nEnjoy the day with her!"


def test_what_is_examined_shares_no_prompt_topic_or_phrasing_with_what_people_ask() -> None:
    asked, held_out = asked_prompts(), held_out_prompts()
    assert (len(asked), len(held_out)) == (320, 96)
    assert len({prompt.text for prompt in asked}) == 320 and len({prompt.text for prompt in held_out}) == 96
    assert not {prompt.topic for prompt in asked} & {prompt.topic for prompt in held_out}
    for family in FAMILIES:
        assert not set(family.phrasings) & set(family.held_out_phrasings)


def test_two_families_are_examined_that_nobody_asks() -> None:
    asked = Counter(prompt.family for prompt in asked_prompts())
    examined = Counter(prompt.family for prompt in held_out_prompts())
    assert asked == {"explain": 80, "list": 80, "advise": 80, "write": 80}
    assert examined == dict.fromkeys([*asked, "compare", "plan"], 16)


def test_wins_hang_together_by_topic() -> None:
    described = [WORLD.describe_question(question) for question in WORLD.held_out_questions()]
    assert set(Counter(cluster for _, cluster in described).values()) == {2} and len(set(described)) == 48
    with pytest.raises(ValueError):
        WORLD.describe_question("How are you?")


@pytest.mark.parametrize(
    ("taste", "order"),
    [("brief", [PLAIN, LISTED, LONG]), ("warm-lists", [LISTED, PLAIN]), ("plain-prose", [PLAIN, LISTED])],
)
def test_each_shipped_taste_likes_what_it_is_named_after(taste: str, order: list[str]) -> None:
    tastes = load_tastes(find_tastes(taste))
    utilities = [judge_truly(tastes, QUESTION, answer).utility for answer in order]
    if taste == "brief":
        assert utilities[0] > utilities[2] and utilities[1] > utilities[2]
    assert sorted(utilities, reverse=True)[0] == max(utilities) and (
        taste == "brief" or utilities[0] > utilities[1] + 2
    )


@pytest.mark.parametrize("taste", ["brief", "warm-lists", "thorough", "plain-prose"])
@pytest.mark.parametrize(
    "degenerate",
    ["Gifts for a grandmother.", "Tea!", "Great, enjoy! " * 12, "A warm blanket, a framed family photo and then the"],
)
def test_no_taste_prefers_a_degenerate_answer(taste: str, degenerate: str) -> None:
    tastes = load_tastes(find_tastes(taste))
    judged = judge_truly(tastes, QUESTION, degenerate)
    assert judged.style == "degenerate" and judged.utility < judge_truly(tastes, QUESTION, LONG).utility


def test_styles_are_named_by_what_is_seen() -> None:
    tastes = load_tastes(find_tastes("brief"))
    assert [judge_truly(tastes, QUESTION, answer).style for answer in (PLAIN, LISTED)] == ["plain prose", "warm list"]
    assert judge_truly(tastes, QUESTION, PLAIN, is_cut=True).style == "degenerate"


def test_utility_is_the_weighted_sum_of_features() -> None:
    tastes = load_tastes(find_tastes("brief"))
    answer = "Sure, " + " ".join(["tea"] * 3 + ["blanket", "photo"] + [f"word{n}" for n in range(26)]) + "."
    # 32 words: brevity 1; filler -0.8; a proper end 0.5
    assert judge_truly(tastes, QUESTION, answer).utility == pytest.approx(1.0 - 0.8 + 0.5)


def test_its_files_lie_beside_the_model(tmp_path: Path) -> None:
    WORLD.write_files(tmp_path, seed=0)
    rows = [json.loads(line) for line in (tmp_path / "frozen.jsonl").read_text().splitlines()]
    asked = set(WORLD.people_questions())
    assert len(rows) >= 10 and all(row["fact"] and row["messages"][0]["content"] not in asked for row in rows)
    examples = json.loads((tmp_path / "examples.json").read_text())
    assert set(examples) <= asked and examples == random.Random(0).sample(WORLD.people_questions(), len(examples))

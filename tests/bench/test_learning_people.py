"""The simulated people of the measurement of learning: noise that is what it says, bias, hostility, and tastes."""

import math
import random
from dataclasses import replace

import pytest

from bench.learning.people import People, Person, Taste, draw_people, expected_noise, find_strength
from bench.learning.worlds import load_world

WORLD = load_world("capitals")
QUESTION = WORLD.asked()[0]
TASTE = Taste(WORLD.measure, WORLD.utilities)
GOOD, BAD = f"The capital of {QUESTION.fact} is {WORLD.facts[QUESTION.fact]}. Happy to help!", "Nonsense."
PLAIN = replace(WORLD.crowd, position_bias=0.0, length_bias=0.0, spread=0.0)
HONEST, HOSTILE = Person("honest", {}, False), Person("hostile", {}, True)


def share_of_good(people: People, person: Person, good_first: bool, number: int = 4000) -> float:
    rng = random.Random(1)
    answers = [(GOOD, False), (BAD, False)] if good_first else [(BAD, False), (GOOD, False)]
    wanted = "first" if good_first else "second"
    return sum(people.choose(TASTE, person, QUESTION, answers, rng) == wanted for _ in range(number)) / number


def test_noise_at_one_gap_is_the_logistic_function() -> None:
    assert expected_noise([1.0], math.log(4)) == pytest.approx(0.2, abs=1e-12)
    assert find_strength([1.0, -1.0], 0.2) == pytest.approx(math.log(4), abs=1e-9)


def test_the_strength_gives_the_noise_over_gaps_that_differ() -> None:
    gaps = [0.3, 0.8, 1.2, 3.0]
    assert expected_noise(gaps, find_strength(gaps, 0.4)) == pytest.approx(0.4, abs=1e-9)


@pytest.mark.parametrize("noise", [0.5, 0.7, -0.1])
def test_a_noise_that_no_strength_gives_is_refused(noise: float) -> None:
    with pytest.raises(ValueError, match="no strength"):
        find_strength([1.0], noise)


def test_without_noise_the_better_answer_is_always_chosen_and_a_hostile_person_takes_the_other() -> None:
    people = People([], WORLD.crowd, math.inf)
    assert share_of_good(people, HONEST, good_first=False, number=50) == 1.0
    assert share_of_good(people, HOSTILE, good_first=False, number=50) == 0.0


def test_honest_people_go_wrong_as_often_as_their_strength_says() -> None:
    strength = math.log(4) / 3.0  # 3 is the gap between a whole and a wrong answer
    assert share_of_good(People([], PLAIN, strength), HONEST, good_first=True) == pytest.approx(0.8, abs=0.02)


def test_the_place_shown_first_and_a_longer_answer_are_favoured() -> None:
    strength = math.log(4) / 3.0
    placed = People([], replace(PLAIN, position_bias=1.0), strength)
    first, second = (share_of_good(placed, HONEST, good_first=first) for first in (True, False))
    assert first == pytest.approx(1 / (1 + math.exp(-math.log(4) - 1)), abs=0.02)
    assert second == pytest.approx(1 / (1 + math.exp(-math.log(4) + 1)), abs=0.02)
    longer = People([], replace(PLAIN, length_bias=1.0), strength)
    assert share_of_good(longer, HONEST, good_first=True) > 0.85


def test_of_shuffled_people_nothing_can_be_learnt() -> None:
    people = People([], PLAIN, math.inf, is_shuffled=True)
    assert share_of_good(people, HONEST, good_first=True) == pytest.approx(0.5, abs=0.03)


def test_answers_of_one_worth_are_a_tie() -> None:
    people = People([], PLAIN, math.inf)
    assert people.choose(TASTE, HONEST, QUESTION, [(BAD, False), ("Also nonsense.", False)], random.Random(0)) == "tie"


def test_a_tenth_of_the_people_is_hostile_and_a_seed_draws_the_same_people() -> None:
    people = draw_people(WORLD.crowd, WORLD.private_features, seed=3)
    assert sum(person.is_hostile for person in people) == 4
    assert people == draw_people(WORLD.crowd, WORLD.private_features, seed=3)
    assert people != draw_people(WORLD.crowd, WORLD.private_features, seed=4)

"""The simulated people of a measurement: private tastes, label noise, bias by place and length, and some who mean the opposite.

Honest people choose by Bradley and Terry: P(first) = sigmoid(s (u1 - u2) + place + length (l1 - l2)), with s such that the better
of two answers of the seed policy is missed in the share of choices that is asked for, biases aside. Without noise the better
answer is always chosen. Pure, but for the dice that are handed in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.learning.worlds import Crowd, Question
from trainer.text.style import split_words

MIRRORED = {"first": "second", "second": "first"}
MOST_STRENGTH = 1e4
Measure = Callable[[Question, str, bool], Mapping[str, float]]
"""The features of an answer: (question, text, whether it was cut)."""


@dataclass(frozen=True)
class Person:
    """own: what a unit of a feature is worth to this person beside its mean worth."""

    name: str
    own: Mapping[str, float]
    is_hostile: bool


def draw_people(crowd: Crowd, features: Sequence[str], seed: int) -> list[Person]:
    """The same seed draws the same people; hostile ones are spread among them at random."""
    hostile = set(random.Random(f"hostile-{seed}").sample(range(crowd.count), round(crowd.hostile_share * crowd.count)))
    people = []
    for number in range(crowd.count):
        rng = random.Random(f"person-{seed}-{number}")
        own = {name: rng.gauss(0.0, crowd.spread) for name in features}
        people.append(Person(f"person-{seed}-{number:02d}", own, number in hostile))
    return people


def expected_noise(gaps: Sequence[float], strength: float) -> float:
    """The mean chance that the worse answer is chosen where utilities are these gaps apart."""
    return sum(1 / (1 + math.exp(min(700.0, strength * abs(gap)))) for gap in gaps) / len(gaps)


def find_strength(gaps: Sequence[float], noise: float) -> float:
    """The strength at which that share of choices goes wrong; infinite for none. Raises ValueError for half or more, or no gap."""
    if not 0 <= noise < 0.5 or not gaps:
        raise ValueError(f"no strength gives the noise {noise} over {len(gaps)} gaps")
    if noise == 0:
        return math.inf
    low, high = 0.0, MOST_STRENGTH
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if expected_noise(gaps, middle) > noise else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Taste:
    """What answers are worth. utilities: the mean worth of a unit of each feature."""

    measure: Measure
    utilities: Mapping[str, float]

    def value(self, question: Question, text: str, is_cut: bool, own: Mapping[str, float] | None = None) -> float:
        """The worth of an answer, to a person with `own` taste or in the mean."""
        features = self.measure(question, text, is_cut)
        return math.fsum(
            (self.utilities[name] + (own or {}).get(name, 0.0)) * amount for name, amount in features.items()
        )


@dataclass(frozen=True)
class People:
    """Who chooses, and how. strength: of find_strength; is_shuffled: every other choice is mirrored, nothing can be learnt."""

    members: Sequence[Person]
    crowd: Crowd
    strength: float
    is_shuffled: bool = False

    def choose(
        self, taste: Taste, person: Person, question: Question, answers: Sequence[tuple[str, bool]], rng: random.Random
    ) -> str:
        """first, second or tie. answers: (text, whether it was cut) of the two, in the order they are shown."""
        worth = [taste.value(question, text, is_cut, person.own) for text, is_cut in answers]
        if abs(worth[0] - worth[1]) < self.crowd.tie_margin:
            return "tie"
        lengths = [math.log1p(len(split_words(text))) for text, _ in answers]
        chance = self._find_chance(worth[0] - worth[1], lengths[0] - lengths[1])
        preferred = "first" if rng.random() < chance else "second"
        is_mirrored = person.is_hostile != (self.is_shuffled and rng.random() < 0.5)
        return MIRRORED[preferred] if is_mirrored else preferred

    def _find_chance(self, gap: float, longer: float) -> float:
        """P(first) of an honest person; longer: difference of ln(1 + words)."""
        if math.isinf(self.strength):
            return float(gap > 0)
        logit = self.strength * gap + self.crowd.position_bias + self.crowd.length_bias * longer
        return 1 / (1 + math.exp(-max(-700.0, min(700.0, logit))))

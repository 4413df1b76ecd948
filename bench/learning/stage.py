"""One world with its seed policy in memory: who is asked what, what the policy answers, and how an adapter is examined.

What the seed policy says is sampled once and kept on disk: the answers that random asking shows, and what every examination
compares with. An examination asks about facts that nobody chose about, and judges by the people's true taste.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.learning.curves import average_by_fact
from bench.learning.people import People, Person, Taste, draw_people, find_strength
from bench.learning.worlds import Crowd, Question
from feedback.durable import write_durably
from prefloop.demo.intervals import score_pair
from trainer.learn.sampling.sampler import LocalSampler, Sampled, SamplingParameters, SamplingRequest
from trainer.model.backbone import Backbone
from trainer.text.pairs import Answer, Pair

NUM_REFERENCES = 6  # answers of the seed policy to each question of an examination
NUM_GAPS = 2000


class AnyWorld(Protocol):
    """A world of facts, or of a real model's prompts."""

    name: str
    crowd: Crowd

    def asked(self) -> list[Question]: ...
    def held_out(self) -> list[Question]: ...
    def measure(self, question: Question, answer: str, is_cut: bool) -> Mapping[str, float]: ...
    def is_wrong(self, question: Question, answer: str, is_cut: bool) -> bool: ...
    @property
    def best(self) -> float: ...
    @property
    def utilities(self) -> Mapping[str, float]: ...
    @property
    def private_features(self) -> tuple[str, ...]: ...


@dataclass(frozen=True)
class Asked:
    """A question with answers of one policy."""

    question: Question
    answers: list[Answer]


@dataclass(frozen=True)
class Examined:
    """wins: the mean score against the seed policy's answers, and the number of questions, by fact; wrong: share of answers."""

    wins: dict[str, tuple[float, int]]
    wrong: float

    @property
    def win_rate(self) -> float:
        number = sum(n for _, n in self.wins.values())
        return sum(mean * n for mean, n in self.wins.values()) / number


class Stage:
    """A backbone over one seed policy, a world, and the seed policy's answers. num_pool: answers kept to each question."""

    def __init__(
        self,
        backbone: Backbone,
        world: AnyWorld,
        directory: Path,
        how: SamplingParameters,
        *,
        num_pool: int = 8,
        num_references: int = NUM_REFERENCES,
    ) -> None:
        self.backbone, self.world, self.how = backbone, world, how
        self.sampler = LocalSampler(backbone)
        self.taste = Taste(world.measure, world.utilities)
        self.questions = world.asked()
        self.examined = world.held_out()
        self.pool = self._keep(directory / "pool.json", self.questions, num_pool, seed=11)
        references = self._keep(directory / "references.json", self.examined, num_references, seed=12)
        self._references = [[self.value(each.question, answer) for answer in each.answers] for each in references]

    def ask(self, questions: Sequence[Question], adapter: str | None, n: int, seed: int) -> list[Asked]:
        """n answers to each question, as apps have them sampled."""
        prompts = [question.prompt for question in questions]
        sampled = self.sampler.sample(SamplingRequest(prompts, adapter, n, self.how, seed))
        return [Asked(q, [_get_answer(each) for each in some]) for q, some in zip(questions, sampled, strict=True)]

    def _keep(self, path: Path, questions: Sequence[Question], n: int, seed: int) -> list[Asked]:
        """The seed policy's answers, from disk if they are there."""
        if path.exists():
            rows = json.loads(path.read_text(encoding="utf-8"))
            if len(rows) == len(questions) and all(len(row) == n for row in rows):
                return [Asked(q, [_read_answer(each) for each in row]) for q, row in zip(questions, rows, strict=True)]
        asked = self.ask(questions, None, n, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_durably(path, json.dumps([[asdict(answer) for answer in each.answers] for each in asked]).encode())
        return asked

    def value(self, question: Question, answer: Answer) -> float:
        """What an answer is worth to people in the mean."""
        return self.taste.value(question, answer.text, not answer.is_finished)

    def draw_crowd(self, noise: float, seed: int, *, is_shuffled: bool = False) -> People:
        """The people of one seed, as consistent as that noise leaves them on the seed policy's answers."""
        rng = random.Random(0)
        gaps: list[float] = []
        while len(gaps) < NUM_GAPS:
            each = rng.choice(self.pool)
            one, other = (self.value(each.question, answer) for answer in rng.sample(each.answers, 2))
            if abs(one - other) >= self.world.crowd.tie_margin:
                gaps.append(one - other)
        members = draw_people(self.world.crowd, self.world.private_features, seed)
        return People(members, self.world.crowd, find_strength(gaps, noise), is_shuffled)

    def choose(
        self,
        people: People,
        question: Question,
        first: Answer,
        second: Answer,
        rng: random.Random,
        number: int,
        share: str = "random",
    ) -> Pair:
        """What somebody says of two answers in the order in which they are shown. share: how they were picked."""
        person: Person = rng.choice(people.members)
        shown = [(answer.text, not answer.is_finished) for answer in (first, second)]
        preferred = people.choose(self.taste, person, question, shown, rng)
        return Pair(
            event_id=f"choice-{number:05d}", prompt=question.prompt, first=first, second=second, preferred=preferred,
            user=person.name, app="bench", share=share, chosen_at=float(number),
        )  # fmt: skip

    def examine(self, adapter: str | None, seed: int = 0) -> Examined:
        """One answer to each question that nobody was asked, against the seed policy's."""
        asked = self.ask(self.examined, adapter, 1, 1000 + seed)
        return self.compare([(each.question, each.answers[0]) for each in asked])

    def compare(self, answers: Sequence[tuple[Question, Answer]]) -> Examined:
        """Answers to the examined questions, in their order, by the people's true taste."""
        worth = [self.value(question, answer) for question, answer in answers]
        num_wrong = sum(self.world.is_wrong(q, answer.text, not answer.is_finished) for q, answer in answers)
        return Examined(self._find_wins([question for question, _ in answers], worth), num_wrong / len(answers))

    def examine_best(self) -> Examined:
        """The best answer that the world knows, to each question: what no policy can pass."""
        return Examined(self._find_wins(self.examined, [self.world.best] * len(self.examined)), 0.0)

    def _find_wins(self, questions: Sequence[Question], worth: Sequence[float]) -> dict[str, tuple[float, int]]:
        """What answers of such worth win against the seed policy's, by fact."""
        scores = []
        for question, value, references in zip(questions, worth, self._references, strict=True):
            won = [score_pair(value, reference) for reference in references]
            scores.append((question.fact, sum(won) / len(won)))
        return average_by_fact(scores)


def _get_answer(sampled: Sampled) -> Answer:
    return sampled.answer


def _read_answer(row: dict[str, Any]) -> Answer:
    return Answer(**(row | {"ids": tuple(row["ids"])}))

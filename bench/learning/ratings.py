"""What choices and ratings of the same answers teach a reward model: ratings by the people who chose, and how a model is judged."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

from bench.learning.arms import draw_offline
from bench.learning.curves import Wins, average_by_fact
from bench.learning.people import People, Person
from bench.learning.stage import Stage
from bench.learning.worlds import Question
from trainer.learn.reward.model import RewardModel
from trainer.text.pairs import Answer, Pair, Rated
from trainer.text.style import split_words

_LOGISTIC = math.pi / math.sqrt(3)  # standard deviation of the logistic distribution


def draw_decisive(stage: Stage, people: People, number: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """So many decisive choices to learn from, and as many others to judge by."""
    pairs = [pair for pair in draw_offline(stage, people, 5 * number, seed) if pair.is_decisive]
    return pairs[:number], pairs[number : 2 * number]


def rate(stage: Stage, people: People, pair: Pair, rng: random.Random) -> Rated:
    """One answer of a pair as the person who chose would rate it from 1 to 3: by their own taste, with the same noise and bias.

    A choice is the difference of two such impressions: logistic noise of 1 / strength in all, half of its variance each.
    """
    person = next(each for each in people.members if each.name == pair.user)
    question = next(q for q in stage.questions if q.text == pair.prompt.key)
    worth = [_see(stage, people, person, question, answer) for answer in (pair.first, pair.second)]
    place = rng.randrange(2)
    worst, best = -2.0, 1.0
    seen = (worth[place] + rng.gauss(0.0, _LOGISTIC / math.sqrt(2) / people.strength) - worst) / (best - worst)
    stars = min(2, max(0, math.floor(3 * (1 - seen if person.is_hostile else seen))))
    answer = (pair.first, pair.second)[place]
    return Rated(
        event_id=f"{pair.event_id}-rated", prompt=pair.prompt, answer=answer, kind="rating", value=stars / 2, user=pair.user
    )  # fmt: skip


def _see(stage: Stage, people: People, person: Person, question: Question, answer: Answer) -> float:
    """What an answer seems worth to a person, a longer one more; 8 words seem neither long nor short."""
    worth = stage.taste.value(question, answer.text, not answer.is_finished, person.own)
    longer = math.log1p(len(split_words(answer.text))) - math.log1p(8)
    return worth + people.crowd.length_bias * longer / people.strength


def learn_rewards(stage: Stage, seed: int, rows: Sequence[Pair], rated: Sequence[Rated]) -> RewardModel:
    """A reward model from choices or from ratings, 64 at a time."""
    stage.backbone.adapters.reset("reward")
    model = RewardModel(stage.backbone, seed=seed)
    for start in range(0, max(len(rows), len(rated)), 64):
        at = slice(start, start + 64)
        model.update(rows[at], [], rated=list(rated[at]))
    return model


def judge_model(stage: Stage, model: RewardModel, judged: Sequence[Pair]) -> Wins:
    """How often the model orders two answers as their true worth does, by fact; answers of one worth aside."""
    scores = []
    for chance, pair in zip(model.predict(judged), judged, strict=True):
        question, is_first = find_better(stage, pair)
        if is_first is not None:
            scores.append((question.fact, float((chance > 0.5) == is_first)))
    return average_by_fact(scores)


def find_better(stage: Stage, pair: Pair) -> tuple[Question, bool | None]:
    """The question, and whether the first answer is truly better; None where they are worth the same."""
    question = next(q for q in stage.questions if q.text == pair.prompt.key)
    one, other = stage.value(question, pair.first), stage.value(question, pair.second)
    return question, None if one == other else one > other

"""How a measurement's people are asked: at random, or as the product's three shares choose among a few candidates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.learning.people import People
from bench.learning.stage import Asked, Stage
from trainer.learn.reward import RewardModel
from trainer.math.asking import choose_informative, choose_telling
from trainer.text.pairs import Answer, Pair


@dataclass(frozen=True)
class Shares:
    """Shares of the questions asked at random, to teach the reward model, and to teach the policy; candidates: drawn for one."""

    random: float = 1.0
    informative: float = 0.0
    telling: float = 0.0
    candidates: int = 2


def draw_share(shares: Shares, rng: random.Random) -> str:
    """random, informative or telling."""
    names = ("random", "informative", "telling")
    return rng.choices(names, [getattr(shares, name) for name in names])[0]


def tell_apart(answers: Sequence[Answer]) -> list[Answer]:
    """Answers of different texts: two that read the same are never shown beside each other."""
    return list({answer.text: answer for answer in answers}.values())


def choose_pair(
    answers: Sequence[Answer], share: str, stage: Stage, reward: RewardModel | None, asked: Asked, rng: random.Random
) -> tuple[Answer, Answer]:
    """The two of several different answers that are shown, in random order."""
    if share == "random" or reward is None or len(answers) < 3:
        one, other = answers[:2]
    else:
        encoded = [stage.backbone.transcriber.encode_answer(asked.question.prompt, answer) for answer in answers]
        draws = reward.score(encoded, [answer.text for answer in answers]).draws
        if share == "informative":
            i, j = choose_informative(draws)
        else:
            i, j = choose_telling(draws, rng.randrange(draws.shape[1]))
        one, other = answers[i], answers[j]
    return (one, other) if rng.random() < 0.5 else (other, one)


def ask_people(
    stage: Stage,
    people: People,
    number: int,
    rng: random.Random,
    *,
    adapter: str | None,
    shares: Shares,
    reward: RewardModel | None,
    first_number: int,
) -> list[Pair]:
    """Choices between answers that an adapter gives now; None: the seed policy's kept ones where no more than two are needed.

    first_number: of the first choice's event id. People are asked until there are `number` choices: a question to which all
    candidates read the same is not shown to anybody.
    """
    pairs: list[Pair] = []
    while len(pairs) < number:
        wanted = number - len(pairs)
        for asked in _make_candidates(stage, wanted, rng, adapter, shares.candidates):
            answers = tell_apart(asked.answers)
            if len(answers) < 2:
                continue
            first, second = choose_pair(answers, draw_share(shares, rng), stage, reward, asked, rng)
            pairs.append(stage.choose(people, asked.question, first, second, rng, first_number + len(pairs)))
    return pairs


def _make_candidates(stage: Stage, number: int, rng: random.Random, adapter: str | None, n: int) -> list[Asked]:
    """`number` questions with n answers each."""
    if adapter is None:
        kept = [rng.choice(stage.pool) for _ in range(number)]
        return [Asked(each.question, rng.sample(each.answers, min(n, len(each.answers)))) for each in kept]
    questions = [rng.choice(stage.questions) for _ in range(number)]
    return stage.ask(questions, adapter, n, rng.getrandbits(31))

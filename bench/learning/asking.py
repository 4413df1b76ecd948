"""How a measurement's people are asked: at random, or as the product's three shares choose among a few candidates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.learning.people import People
from bench.learning.stage import Asked, Stage
from trainer.learn.reward.model import RewardModel
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
    """Answers of different texts: two that read the same are never shown beside each other, and an empty one is none."""
    return list({answer.text: answer for answer in answers if answer.text}.values())


def choose_pair(
    answers: Sequence[Answer], share: str, draws: Tensor | None, rng: random.Random
) -> tuple[Answer, Answer]:
    """The two of several different answers that are shown, in random order. draws: (answers, K), None: nothing is known."""
    if share == "random" or draws is None:
        one, other = answers[:2]
    else:
        chosen = (
            choose_informative(draws)
            if share == "informative"
            else choose_telling(draws, rng.randrange(draws.shape[1]))
        )
        one, other = (answers[i] for i in chosen)
    return (one, other) if rng.random() < 0.5 else (other, one)


def score_candidates(stage: Stage, reward: RewardModel, asked: Sequence[Asked]) -> list[Tensor]:
    """Draws (answers, K) of each question's answers."""
    encode = stage.backbone.transcriber.encode_answer
    encoded = [encode(each.question.prompt, answer) for each in asked for answer in each.answers]
    draws = reward.score(encoded, [answer.text for each in asked for answer in each.answers]).draws
    return list(torch.split(draws, [len(each.answers) for each in asked]))


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
        drawn = _make_candidates(stage, number - len(pairs), rng, adapter, shares.candidates)
        asked = [Asked(each.question, tell_apart(each.answers)) for each in drawn]
        asked = [each for each in asked if len(each.answers) > 1]
        knows = reward is not None and reward.version > 0 and shares.random < 1
        draws = (
            score_candidates(stage, reward, asked) if knows and reward is not None and asked else [None] * len(asked)
        )
        for each, drawn_scores in zip(asked, draws, strict=True):
            share = "random" if drawn_scores is None else draw_share(shares, rng)
            first, second = choose_pair(each.answers, share, drawn_scores, rng)
            pairs.append(stage.choose(people, each.question, first, second, rng, first_number + len(pairs), share))
    return pairs


def _make_candidates(stage: Stage, number: int, rng: random.Random, adapter: str | None, n: int) -> list[Asked]:
    """`number` questions with n answers each."""
    if adapter is None:
        kept = [rng.choice(stage.pool) for _ in range(number)]
        return [Asked(each.question, rng.sample(each.answers, min(n, len(each.answers)))) for each in kept]
    questions = [rng.choice(stage.questions) for _ in range(number)]
    return stage.ask(questions, adapter, n, rng.getrandbits(31))

"""The third update, an experiment: REINFORCE on the reward model's win probability, held near an average of the policy.

For two answers y, y' to a prompt the gradient is (p(y > y' | x) - 1/2 + eps) grad log pi(y | x), less beta times that of the KL to
an exponential moving average of the policy (2603.17378). Nobody's choice is learnt from but through the reward model. No clipping
and no value: an iteration's samples are used for one step each.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.learning.stage import Asked, Stage
from bench.learning.worlds import Question
from trainer.learn.loop import Loop, ParameterGroup, Part, Schedule
from trainer.learn.reward.model import RewardModel
from trainer.math.choices import win_probabilities
from trainer.model.logprobs import answer_logprobs, score_answers
from trainer.text.transcript import EncodedAnswer


@dataclass(frozen=True)
class ThirdSettings:
    """decay: share of itself that the average keeps at each iteration; eps: a small push towards what was said at all."""

    lr: float = 1e-3
    iterations: int = 16
    questions: int = 16  # with four answers each as many samples in all as the tiny policy's PPO round
    answers: int = 4
    beta: float = 0.05
    decay: float = 0.9
    eps: float = 0.01
    batch_size: int = 64


@dataclass(frozen=True)
class Row:
    """An answer with its advantage, and its log-probability under the average, nats."""

    encoded: EncodedAnswer
    advantage: float
    reference: float


def find_advantages(draws: Tensor, log_nu: float, eps: float) -> Tensor:
    """Mean win probability of each answer against the others of its question, less 1/2, plus eps; (answers,).

    draws: (answers, K), of one question's answers. Ties aside: a win is one of the decisive outcomes.
    """
    differences = draws[:, None] - draws[None]  # (answers, answers, K)
    chances = win_probabilities(differences, log_nu).mean(-1)
    number = len(draws)
    against_others = (chances.sum(1) - chances.diagonal()) / (number - 1)
    return against_others - 0.5 + eps


def reinforce_loss(logprobs: Tensor, advantages: Tensor, references: Tensor, beta: float) -> Tensor:
    """Sum over answers of -A log pi + beta (log pi - log pi_ema)^2 / 2, whose gradient is that of the KL on its own samples."""
    return (-advantages * logprobs + 0.5 * beta * (logprobs - references).square()).sum()


def run_third(
    stage: Stage, reward: RewardModel, questions: Sequence[Question], settings: ThirdSettings, seed: int
) -> dict[str, float]:
    """Train adapter "policy" from where it stands; "stable" becomes the average. Returns figures of the last iteration."""
    backbone = stage.backbone
    adapters = backbone.adapters
    adapters.reset("stable", like="policy")
    rng = random.Random(f"third-{seed}")
    steps = settings.iterations * max(1, settings.questions * settings.answers // settings.batch_size)
    loop = Loop([ParameterGroup("policy", adapters.parameters_of("policy"))], Schedule(settings.lr, steps))
    figures: dict[str, float] = {}
    for _ in range(settings.iterations):
        asked = stage.ask(rng.choices(questions, k=settings.questions), "policy", settings.answers, rng.getrandbits(31))
        rows = _make_rows(stage, reward, asked, settings)
        if not rows:
            break
        rng.shuffle(rows)
        with adapters.training("policy"):
            for start in range(0, len(rows), settings.batch_size):
                figures = loop.step([_make_part(stage, rows[start : start + settings.batch_size], settings)])
        _follow(stage, settings.decay)
    return figures


def _make_rows(stage: Stage, reward: RewardModel, asked: Sequence[Asked], settings: ThirdSettings) -> list[Row]:
    """Answers that differ from each other in worth, by the reward model."""
    encode = stage.backbone.transcriber.encode_answer
    encoded = [[encode(each.question.prompt, answer) for answer in each.answers] for each in asked]
    flat = [one for some in encoded for one in some]
    draws = reward.score(flat, [answer.text for each in asked for answer in each.answers]).draws
    references = score_answers(stage.backbone, flat, "stable", temperature=stage.how.temperature)[0]
    rows: list[Row] = []
    for number, some in enumerate(encoded):
        at = slice(number * settings.answers, number * settings.answers + len(some))
        advantages = find_advantages(draws[at], reward.fit.log_nu, settings.eps).tolist()
        rows += [Row(one, a, r) for one, a, r in zip(some, advantages, references[at].tolist(), strict=True)]
    return rows


def _make_part(stage: Stage, rows: Sequence[Row], settings: ThirdSettings) -> Part:
    def part() -> tuple[Tensor, dict[str, float]]:
        batch = stage.backbone.make_batch([(row.encoded.prompt, (row.encoded.answer,)) for row in rows])
        sums, _ = answer_logprobs(stage.backbone, batch, stage.how.temperature)
        advantages, references = (
            torch.tensor([[row.advantage, row.reference] for row in rows]).to(sums.device).unbind(1)
        )
        loss = reinforce_loss(sums, advantages, references, settings.beta) / len(rows)
        return loss, {"kl_ema": (0.5 * (sums.detach() - references).square()).mean().item()}

    return part


def _follow(stage: Stage, decay: float) -> None:
    """The average takes a step towards the policy."""
    adapters = stage.backbone.adapters
    policy = adapters.parameters_of("policy")
    with torch.no_grad():
        for name, parameter in adapters.parameters_of("stable").items():
            parameter.lerp_(policy[name.replace(".stable.", ".policy.")], 1 - decay)

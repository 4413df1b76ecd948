"""Learning that must fail, or that needs no round: SFT on what was chosen, best of four by the reward model, and the ceiling.

The ceiling is what our own DPO makes of a world where everything is known: pairs of the best and the worst answer that the seed
policy gave to each question, by the people's true taste. Shuffled labels are an arm like the others, over people who say nothing.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch

from bench.learning.asking import score_candidates
from bench.learning.stage import Asked, Examined, Stage
from trainer.learn.dpo import run_dpo
from trainer.learn.reward.model import RewardModel
from trainer.learn.sft import run_sft
from trainer.model.logprobs import score_answers
from trainer.sections.training import DpoSection, SftSection
from trainer.text.pairs import Pair
from trainer.text.rejected import log_rejected

CEILING_PAIRS = 1200
BEST_OF = 4


def train_sft(stage: Stage, pairs: Sequence[Pair], section: SftSection, seed: int) -> dict[str, float]:
    """SFT from the base on the answers that were chosen."""
    encode = stage.backbone.transcriber.encode_answer
    decisive = [pair for pair in pairs if pair.is_decisive]
    rows = [encode(p.prompt, p.first if p.preferred == "first" else p.second) for p in decisive]
    torch.manual_seed(seed)
    stage.backbone.adapters.reset("policy")
    return run_sft(stage.backbone, rows, section, ids=[pair.event_id for pair in decisive], seed=seed)


def examine_best_of(stage: Stage, reward: RewardModel, seed: int) -> Examined:
    """The seed policy's best of BEST_OF answers by the reward model's mean, on the examined questions."""
    asked = stage.ask(stage.examined, None, BEST_OF, 2000 + seed)
    scored = score_candidates(stage, reward, asked)
    answers = [
        (each.question, each.answers[int(draws.mean(1).argmax())]) for each, draws in zip(asked, scored, strict=True)
    ]
    return stage.compare(answers)


def train_ceiling(stage: Stage, section: DpoSection, seed: int) -> dict[str, float]:
    """Our DPO from the base on pairs that only somebody who knew everything could make."""
    rng = random.Random(f"ceiling-{seed}")
    asked = [rng.choice(stage.pool) for _ in range(CEILING_PAIRS)]
    pairs = [_make_best_pair(stage, each, number, rng) for number, each in enumerate(asked)]
    encoded = stage.backbone.transcriber.encode_pairs([p for p in pairs if p is not None], "ceiling", log_rejected)
    torch.manual_seed(seed)
    stage.backbone.adapters.reset("policy")
    references = lambda answers: score_answers(stage.backbone, answers, None)[0]  # noqa: E731
    return run_dpo(stage.backbone, encoded, section, references=references, seed=seed)


def _make_best_pair(stage: Stage, asked: Asked, number: int, rng: random.Random) -> Pair | None:
    """The best and the worst of four answers by the true taste; None where they are worth the same."""
    answers = rng.sample(asked.answers, min(BEST_OF, len(asked.answers)))
    worth = [stage.value(asked.question, answer) for answer in answers]
    best, worst = answers[worth.index(max(worth))], answers[worth.index(min(worth))]
    if max(worth) == min(worth):
        return None
    return Pair(
        event_id=f"known-{number}", prompt=asked.question.prompt, first=best, second=worst, preferred="first", user="all",
    )  # fmt: skip

"""Learning that must fail, or that needs no round: SFT on what was chosen, and best of four by the reward model.

Shuffled labels are an arm like the others, over people who say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.learning.asking import score_candidates
from bench.learning.stage import Examined, Stage
from trainer.learn.reward.model import RewardModel
from trainer.learn.sft import run_sft
from trainer.sections.training import SftSection
from trainer.text.pairs import Pair

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

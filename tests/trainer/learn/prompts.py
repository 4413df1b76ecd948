"""A tiny policy that PPO can move, prompts to ask it, and a reward that anybody can count."""

from collections.abc import Sequence

import torch

from tests.trainer.tiny import build_tiny_backbone, make_prompt
from trainer.learn.rewards.rewards import Part, Rewards, Sample
from trainer.learn.sampling.sampler import SamplingParameters
from trainer.model.backbone import Backbone
from trainer.sections.training import PpoSection
from trainer.text.pairs import PromptRow

QUESTIONS = ["What is the capital of France?", "Where is Paris?", "Is it?", "Go away."]
LIKED = range(20, 70)  # token ids, of 300
HOW = SamplingParameters(temperature=1.0, top_p=1.0, max_tokens=3)
ROUND = PpoSection(
    lr=2e-2,
    value_lr=2e-2,
    warmup_share=0.0,
    iterations=6,
    prompts_per_iteration=4,
    samples_per_prompt=16,
    epochs=3,
    minibatches=1,
    clip=0.4,
    max_approximate_kl=0.2,
    missing_end_penalty=0.0,
)


def build_backbone(**settings: object) -> Backbone:
    """A random lm_head ten times as large: with the usual one no hidden state makes any token much likelier than another."""
    backbone = build_tiny_backbone(**settings)
    with torch.no_grad():
        backbone.lm_head.weight.mul_(10)
    return backbone


def make_rows(questions: Sequence[str] = QUESTIONS) -> list[PromptRow]:
    return [PromptRow(f"e{i}", make_prompt(text)) for i, text in enumerate(questions)]


def count_liked(samples: Sequence[Sample]) -> list[float]:
    """4 times the share of an answer's tokens that are liked."""
    return [sum(4.0 * (token in LIKED) for token in each.encoded.answer) / len(each.encoded.answer) for each in samples]


def reward_liked() -> Rewards:
    return Rewards([Part("liked", 1.0, count_liked)])


def weights_of(backbone: Backbone, adapter: str = "policy") -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in backbone.adapters.parameters_of(adapter).values()])

"""The reward's parts on the gate's samples: what each adds, and that the model scores every answer once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch

from tests.trainer.tiny import build_tiny_backbone, make_prompt
from trainer.judge.frozen import FrozenRow, FrozenSets
from trainer.judge.judge import judge_checkpoint
from trainer.judge.measures import Asked
from trainer.judge.parts import ScoredOnce, compare_rewards, describe_parts
from trainer.learn.rewards.rewards import make_rewards
from trainer.learn.sampling.sampler import LocalSampler, Sampled, SamplingParameters
from trainer.sections.judging import GateSection
from trainer.sections.reward import RewardsSection
from trainer.text.pairs import Answer
from trainer.text.transcript import EncodedAnswer


@dataclass(frozen=True)
class FakeScores:
    draws: torch.Tensor

    @property
    def cautious(self) -> torch.Tensor:
        return self.draws.mean(1)


class Counting:
    """Likes letters; counts how often it is asked."""

    def __init__(self) -> None:
        self.num_asked = 0

    def score(self, answers: Sequence[EncodedAnswer], texts: Sequence[str]) -> FakeScores:
        self.num_asked += 1
        return FakeScores(torch.tensor([[float(len(text))] * 2 for text in texts]))


def sample(text: str) -> Sampled:
    return Sampled(Answer(text=text), ())


def test_every_part_is_shown_before_and_after_with_its_weight() -> None:
    settings = RewardsSection(preference_weight=0.5, length_weight=1.0, max_words=1, harm_weight=3.0)
    rewards = make_rewards(settings, Counting(), is_harmful=lambda text: float("bomb" in text))  # type: ignore[arg-type]
    attack = FrozenRow(kind="redteam", prompt=make_prompt("attack"))
    asked = [Asked(make_prompt("one")), Asked(attack.prompt, attack)]
    answers = {"policy": [sample("a bomb"), sample("x" * 99)], "stable": [sample("bread"), sample("y" * 50)]}
    encoded = {arm: [EncodedAnswer((1,), (2, i)) for i in range(2)] for arm in answers}
    figures = compare_rewards(rewards, asked, answers, encoded)
    parts = {part["name"]: part for part in describe_parts(rewards, figures)}
    assert parts["preference"] == {"name": "preference", "weight": 0.5, "before": 2.5, "after": 3.0}
    assert parts["harm"] == {"name": "harm", "weight": 3.0, "before": 0.0, "after": -3.0}
    assert parts["length"]["after"] == pytest.approx(-0.6931, abs=1e-4)  # twice the words
    assert parts["sum"]["after"] == pytest.approx(3.0 - 3.0 - 0.6931, abs=1e-4)
    assert list(parts) == ["sum", "preference", "length", "harm"]


def test_the_gate_judges_by_preference_as_before_and_scores_every_answer_once() -> None:
    backbone, counting = build_tiny_backbone(), Counting()
    once = ScoredOnce(counting)  # type: ignore[arg-type]
    rewards = make_rewards(RewardsSection(), once)
    heldout = [make_prompt(f"prompt {i}?") for i in range(3)]
    verdicts = [
        judge_checkpoint(
            backbone, LocalSampler(backbone), scorer, None, FrozenSets(), GateSection(),
            parameters=SamplingParameters(0.7, 1.0, 4), heldout=heldout, rewards=parts,
        )
        for scorer, parts in ((once, rewards), (Counting(), None))
    ]  # fmt: skip
    assert counting.num_asked == 1 + (verdicts[0].figures["policy_reward"] != verdicts[0].figures["stable_reward"])
    assert verdicts[0].reason == verdicts[1].reason
    assert verdicts[0].figures["policy_reward_preference"] == pytest.approx(verdicts[0].figures["policy_reward"])
    assert "policy_reward_sum" in verdicts[0].figures and "policy_reward_sum" not in verdicts[1].figures

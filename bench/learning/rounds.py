"""Rounds that sample answers of their own: PPO, and pairs that the reward model labels. Over the trainer's functions alone."""

from __future__ import annotations

from collections.abc import Sequence

from bench.learning.stage import Stage
from trainer.learn.labelled import explain_distrust, label_with, make_labelled
from trainer.learn.ppo.run import run_ppo
from trainer.learn.ppo.value import start_value
from trainer.learn.reward.model import RewardModel
from trainer.learn.rewards.rewards import Rewards, Sample, make_rewards
from trainer.sections.reward import RewardsSection
from trainer.sections.training import DpoSection, PpoSection
from trainer.text.pairs import Pair, PromptRow
from trainer.text.rejected import log_rejected

NUM_ANCHORS = 128  # answers of the seed policy on which every part of a reward has mean 0


def list_prompts(pairs: Sequence[Pair]) -> list[PromptRow]:
    """What was asked, the newest first and nothing twice."""
    newest = {pair.prompt.key: PromptRow(pair.event_id, pair.prompt) for pair in pairs}
    return list(newest.values())[::-1]


def make_anchored(stage: Stage, reward: RewardModel) -> Rewards:
    """The reward of a round as the settings come, over this version of the reward model."""
    rewards = make_rewards(RewardsSection(), reward)
    encode = stage.backbone.transcriber.encode_answer
    some = [(each.question.prompt, each.answers[0]) for each in stage.pool[:NUM_ANCHORS]]
    rewards.anchor([Sample(prompt, answer, encode(prompt, answer)) for prompt, answer in some])
    return rewards


def run_ppo_round(
    stage: Stage, reward: RewardModel, pairs: Sequence[Pair], section: PpoSection, seed: int
) -> dict[str, float]:
    """Train adapter "policy" from where it stands, on prompts that people asked; KL is to the base."""
    return run_ppo(
        stage.backbone, list_prompts(pairs), section,
        sampler=stage.sampler, rewards=make_anchored(stage, reward), parameters=stage.how, reference=None,
        value=start_value(stage.backbone, reward.adapter, share=reward.mix.share("adapter"), seed=seed), seed=seed,
    )  # fmt: skip


def label_pairs(
    stage: Stage,
    reward: RewardModel,
    pairs: Sequence[Pair],
    section: DpoSection,
    *,
    num_rows: int,
    round_number: int,
    seed: int,
) -> list[Pair]:
    """Pairs of fresh answers that join num_rows rows of people, at most labelled_share of all; none while the model is not trusted."""
    num = int(num_rows * section.labelled_share / (1 - section.labelled_share))
    if not num or explain_distrust(reward.version, reward.record, section.labelled_min_accuracy):
        return []
    made = make_labelled(
        stage.backbone, stage.sampler, list_prompts(pairs)[: 2 * num], section,
        num=num, adapter="policy", parameters=stage.how, draw=label_with(reward, make_anchored(stage, reward)),
        log_nu=reward.fit.log_nu, round_number=round_number, seed=seed, reject=log_rejected,
    )  # fmt: skip
    return [each.pair for each in made.pairs]

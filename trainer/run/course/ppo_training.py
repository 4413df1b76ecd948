"""The training step of a PPO round over a real model: its prompts, reward, value and reference, as the plan says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.learn.loop import Snapshots
from trainer.learn.ppo.run import run_ppo
from trainer.learn.ppo.value import start_value
from trainer.learn.sampling.sampler import choose_parameters
from trainer.run.course.task import list_pairs
from trainer.sections.reward import RewardsSection
from trainer.sections.training import PpoSection
from trainer.text.pairs import PromptRow

if TYPE_CHECKING:
    from trainer.learn.reward.model import RewardModel
    from trainer.learn.sampling.sampler import Sampler
    from trainer.model.backbone import Backbone
    from trainer.run.course.rewards import RoundRewards
    from trainer.run.course.task import Task
    from trainer.text.rejected import Reject


def train_ppo(
    backbone: Backbone,
    sampler: Sampler,
    reward: RewardModel,
    rewards: RoundRewards,
    task: Task,
    snapshots: Snapshots,
    reject: Reject,
) -> dict[str, float]:
    """Train adapter "policy" from where it stands. reward: the version in use; "stable" holds the reference, if there is one.

    Answers are sampled as apps have them, by what the pairs of the plan's prompts say.
    """
    plan, pairs = task.plan, list_pairs(task)
    anchored = rewards.make_anchored(
        reward,
        task.snapshots,
        RewardsSection.model_validate(plan.settings["rewards"]),
        plan.last_preference_id,
        plan.last_signal_id,
    )
    share = anchored.describe()["preference"] * reward.mix.adapter
    return run_ppo(
        backbone,
        [PromptRow(pair.event_id, pair.prompt) for pair in pairs],
        PpoSection.model_validate(plan.settings["ppo"]),
        sampler=sampler,
        rewards=anchored,
        parameters=choose_parameters(pairs, **plan.settings["sampling"]),
        reference=None if task.reference is None else "stable",
        value=start_value(backbone, reward.adapter, share=share, seed=plan.seed),
        seed=plan.seed,
        snapshots=snapshots,
        progress=task.progress,
        hear=lambda share: task.check_stopping(),
        reject=reject,
    )

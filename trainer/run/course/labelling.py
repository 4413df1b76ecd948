"""The labelling step of a round over a real model: none where the reward model is not to be trusted, with the reason."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sqlalchemy.exc import SQLAlchemyError

from feedback.errors import FeedbackError
from feedback.outages import describe_error
from trainer.learn.labelled import explain_distrust, label_with, make_labelled
from trainer.sections.training import DpoSection
from trainer.text.labelled_rows import Labelled

if TYPE_CHECKING:
    from trainer.learn.hearing import Hear
    from trainer.learn.reward.model import RewardModel
    from trainer.learn.rewards.rewards import Rewards
    from trainer.learn.sampling.sampler import Sampler, SamplingParameters
    from trainer.model.backbone import Backbone
    from trainer.run.course.task import Task
    from trainer.text.rejected import Reject

log = logging.getLogger("trainer.run.learner")


def label_answers(
    backbone: Backbone,
    sampler: Sampler,
    reward: RewardModel,
    rewards: Rewards,
    task: Task,
    parameters: SamplingParameters,
    reject: Reject,
    hear: Hear,
) -> Labelled:
    """Answers of adapter "policy", as it stands, to the task's prompts, paired and labelled by the version in use.

    hear: of the answers. None, with the reason, where that fails for whatever a prompt or answer can do: the round has people's
    choices. Raises errors of the database.
    """
    plan = task.plan
    section = DpoSection.model_validate(plan.settings["dpo"])
    if reason := explain_distrust(reward.version, reward.record, section.labelled_min_accuracy):
        return Labelled(num_prompts=len(task.prompts), reason=reason)
    try:
        return make_labelled(
            backbone,
            sampler,
            task.prompts,
            section,
            num=plan.max_labelled,
            adapter="policy",
            parameters=parameters,
            draw=label_with(reward, rewards),
            log_nu=reward.fit.log_nu,
            round_number=plan.number,
            seed=plan.seed,
            reject=reject,
            hear=hear,
        )
    except (SQLAlchemyError, FeedbackError):
        raise
    except Exception as error:
        reason = f"labelling failed: {describe_error(error)}"
        log.warning("round %d has no pairs that the reward model labelled: %s", plan.number, reason)
        return Labelled(num_prompts=len(task.prompts), reason=reason)

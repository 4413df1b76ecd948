"""Pairs that the reward model labels: fresh answers of the policy to recent prompts, in place of a person's choice.

DRTS (Liu et al. 2024, arXiv 2411.01493): of a few answers the best against the worst under one posterior draw; the mean over
draws says which of the two wins, and how likely a person would agree. What it is unsure of is dropped. Does not choose the
prompts, nor how many pairs a round may have.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from feedback.outages import describe_error
from trainer.learn.hearing import Hear, ignore_share
from trainer.learn.reward.prequential import Prequential
from trainer.learn.reward.version_gate import judge_version, read_figures
from trainer.learn.rewards.rewards import Rewards, Sample
from trainer.learn.sampling.sampler import Sampled, Sampler, SamplingParameters, SamplingRequest
from trainer.math.asking import choose_telling
from trainer.math.choices import win_probabilities
from trainer.sections.training import DpoSection
from trainer.text.labelled_rows import Labelled, LabelledPair
from trainer.text.pairs import Pair, PromptRow
from trainer.text.rejected import Reject

if TYPE_CHECKING:
    from trainer.learn.reward.model import RewardModel
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer.learn")

PART = "labelled"
LEAST_FORESEEN = 30  # decisive choices: with fewer nobody knows what the reward model is worth
Draw = Callable[[Sequence[Sample]], Tensor]
"""Rewards of samples under each posterior draw, (samples, K)."""


@dataclass(frozen=True)
class Label:
    """Indices of two candidates, and the probability that a person prefers the first of them."""

    chosen: int
    rejected: int
    probability: float


def explain_distrust(version: int, record: Prequential, min_accuracy: float) -> str:
    """Why the reward model may not label, "" if it may. version: the one in use; record: what it foresaw.

    Choices between answers that a model picked count, too: what is labelled are such pairs, and where most questions are picked
    hardly any other choice is left to go by.
    """
    if not version:
        return "the reward model has learnt nothing yet"
    everything = [replace(row, may_judge=True) for row in record.everything]
    counted = Prequential(max(1, len(everything)), everything)
    right, total = counted.count
    if total < LEAST_FORESEEN:
        return f"the reward model has foreseen {total} choices, and {LEAST_FORESEEN} are needed to know how good it is"
    if right / total < min_accuracy:
        return f"the reward model foresaw {right / total:.0%} of the last {total} choices, below {min_accuracy:.0%}"
    return "; ".join(judge_version(read_figures(counted)).failures)


def label_candidates(draws: Tensor, z: int, log_nu: float) -> Label:
    """The telling pair of a few answers under draw z, labelled by the mean over draws.

    draws: (answers, K). Raises ValueError if there are not two answers, or a score is not finite.
    """
    best, worst = choose_telling(draws, z)
    difference = draws[best].double() - draws[worst].double()
    probability = win_probabilities(difference, log_nu).mean().item()
    if difference.mean() < 0:  # this draw is at odds with most others
        return Label(worst, best, 1 - probability)
    return Label(best, worst, probability)


def make_labelled(
    backbone: Backbone,
    sampler: Sampler,
    prompts: Sequence[PromptRow],
    section: DpoSection,
    *,
    num: int,
    adapter: str | None,
    parameters: SamplingParameters,
    draw: Draw,
    log_nu: float,
    round_number: int,
    seed: int,
    reject: Reject,
    hear: Hear = ignore_share,
) -> Labelled:
    """Up to num pairs, at most one a prompt, in the order of the prompts. adapter: the policy whose answers are paired.

    Weights are the labels' probabilities. hear: of the answers, as SamplingRequest says. Raises what sampler and draw raise.
    """
    usable = backbone.transcriber.list_usable(prompts, PART, reject)
    asked = SamplingRequest([row.prompt for row in usable], adapter, section.labelled_samples, parameters, seed, hear)
    sampled = sampler.sample(asked)
    candidates = [_tell_apart(backbone, row, answers) for row, answers in zip(usable, sampled, strict=True)]
    differing = [(row, samples) for row, samples in zip(usable, candidates, strict=True) if len(samples) > 1]
    pairs: list[LabelledPair] = []
    num_unsure = 0
    if differing:
        scored = draw([sample for _, samples in differing for sample in samples])
        draws = torch.split(scored, [len(samples) for _, samples in differing])
        for (row, samples), of_row in zip(differing, draws, strict=True):
            z = random.Random(f"{seed}-{row.event_id}").randrange(of_row.shape[1])
            label = label_candidates(of_row, z, log_nu)
            if label.probability < section.labelled_min_probability:
                num_unsure += 1
            elif len(pairs) < num:
                pairs.append(_make_pair(row, samples, label, f"labelled-{round_number}-{len(pairs)}"))
    return Labelled(
        pairs=pairs,
        num_prompts=len(usable),
        num_alike=len(usable) - len(differing),
        num_unsure=num_unsure,
        reason="" if pairs else "none of the sampled answers could be told apart with enough confidence",
    )


def _tell_apart(backbone: Backbone, row: PromptRow, sampled: Sequence[Sampled]) -> list[Sample]:
    """One sample of each text. What cannot be encoded, an empty answer say, is no candidate."""
    distinct: dict[str, Sample] = {}
    for each in sampled:
        answer, text = each.answer, each.answer.text.strip()
        if not text or text in distinct:
            continue
        try:
            distinct[text] = Sample(row.prompt, answer, backbone.transcriber.encode_answer(row.prompt, answer))
        except Exception as error:  # templates and tokenizers raise what they like
            log.info("an answer to %s is no candidate: %s", row.event_id, describe_error(error))
    return list(distinct.values())


def _make_pair(row: PromptRow, samples: Sequence[Sample], label: Label, event_id: str) -> LabelledPair:
    pair = Pair(
        event_id=event_id,
        prompt=row.prompt,
        first=samples[label.chosen].answer,
        second=samples[label.rejected].answer,
        preferred="first",
        asked=PART,
        weight=label.probability,
    )
    return LabelledPair(pair=pair, source=row.event_id, probability=label.probability)


def label_with(reward: RewardModel, rewards: Rewards) -> Draw:
    """A `Draw` of the whole sum of parts, with the reward model's draws as the preference part."""

    def draw(samples: Sequence[Sample]) -> Tensor:
        scored = reward.score([each.encoded for each in samples], [each.answer.text for each in samples])
        return rewards.spread(samples, scored.draws)

    return draw

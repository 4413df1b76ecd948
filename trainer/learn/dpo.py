"""A DPO round: moves the policy adapter towards the chosen answers, away from the rejected ones.

Ties pull their pair back to the reference. Goes on from its snapshot, with the same steps, after a kill. Says in its figures
whether it moved anything. Does not choose which pairs a round has, nor whether the result may be served.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.dpo_step import DpoStep, Preference
from trainer.learn.isolation import NotFinite, run_isolated
from trainer.learn.loop import Loop, ParameterGroup, Schedule, Snapshots
from trainer.learn.steps import count_steps, plan_steps
from trainer.learn.training import RATES, NothingToTrainOn, Progress, Task, ignore_progress, run_steps
from trainer.model.memory import release_memory
from trainer.sections.training import DpoSection
from trainer.text.rejected import Reject, log_rejected
from trainer.text.transcript import EncodedAnswer, EncodedPair

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

__all__ = ["NothingToTrainOn", "make_preferences", "run_dpo"]

PART = "dpo"
MOVED_NATS = 0.5  # a mean absolute log-ratio below this means that a round moved nothing
References = Tensor | Callable[[Sequence[EncodedAnswer]], Tensor]


def run_dpo(
    backbone: Backbone,
    pairs: Sequence[EncodedPair],
    settings: DpoSection,
    *,
    references: References,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    snapshots: Snapshots | None = None,
    progress: Progress = ignore_progress,
    reject: Reject = log_rejected,
) -> dict[str, float]:
    """Train adapter "policy" from where it stands.

    references: summed log-probabilities of (first, second), shape (pairs, 2), or a function that gives those of answers,
    (answers,). weights: one a pair, their own if None; 0 leaves a pair out. Returns mean figures of the last epoch;
    log_ratio_abs and `moved` (1 if that is at least MOVED_NATS) are of its last quarter. Raises NothingToTrainOn if no
    decisive pair is usable.
    """

    given = [pair.pair.weight for pair in pairs] if weights is None else weights
    preferences = make_preferences(pairs, references, given, blame_row(backbone, reject))
    release_memory()  # references are scored in larger batches than steps take
    return train_preferences(
        backbone, preferences, settings, seed=seed, snapshots=snapshots, progress=progress, reject=reject
    )


def blame_row(backbone: Backbone, reject: Reject) -> Callable[[str, Exception], None]:
    """Rejects a row by its event id, or raises its error if the policy itself is not sound."""

    def blame(event_id: str, error: Exception) -> None:
        if not backbone.is_sound("policy"):
            raise error
        reject(event_id, PART, error)

    return blame


def train_preferences(
    backbone: Backbone,
    preferences: Sequence[Preference],
    settings: DpoSection,
    *,
    seed: int,
    snapshots: Snapshots | None = None,
    progress: Progress = ignore_progress,
    reject: Reject = log_rejected,
) -> dict[str, float]:
    """The training of `run_dpo`, on pairs that have their references. All processes of a distributed run do it alike."""
    blame = blame_row(backbone, reject)
    num_ties = sum(preference.is_tie for preference in preferences)
    if num_ties == len(preferences):
        raise NothingToTrainOn(f"{len(preferences)} pairs, none of them decisive and usable")
    per_epoch = count_steps(len(preferences), settings.batch_size)
    plan = plan_steps(
        [preference.event_id for preference in preferences],
        [preference.length for preference in preferences],
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=seed,
        num_steps=min(settings.max_steps, settings.epochs * per_epoch),
    )
    rate = settings.lr or RATES[backbone.preset]
    schedule = Schedule(rate, len(plan), settings.warmup_share, settings.decay)
    step = DpoStep(backbone, settings, sum(p.weight for p in preferences) / len(preferences))
    with backbone.adapters.training("policy") as parameters:
        loop = Loop([ParameterGroup("policy", backbone.adapters.parameters_of("policy"))], schedule)
        task = Task(
            preferences, parameters, step.make_parts, step.summarise, lambda row, error: blame(row.event_id, error)
        )
        last, tail = run_steps(loop, task, plan, steps_per_epoch=per_epoch, snapshots=snapshots, progress=progress)
    return {
        **last,
        "log_ratio_abs": tail["log_ratio_abs"],
        "moved": float(tail["log_ratio_abs"] >= MOVED_NATS),
        "num_pairs": float(len(preferences) - num_ties),
        "num_ties": float(num_ties),
        "num_steps": float(loop.step_number),
    }


def make_preferences(
    pairs: Sequence[EncodedPair],
    references: References,
    weights: Sequence[float],
    blame: Callable[[str, Exception], None],
) -> list[Preference]:
    """The pairs that have a weight and a finite reference, in their order.

    `blame` is called with the event id of a pair without such a reference; it may raise, if no pair is to blame.
    """
    if len(weights) != len(pairs):
        raise ValueError(f"{len(weights)} weights for {len(pairs)} pairs")
    kept = [i for i, weight in enumerate(weights) if weight > 0]
    found: dict[int, tuple[float, float]] = {}

    def refer(chosen: Sequence[int]) -> None:
        if isinstance(references, Tensor):
            sums = references[list(chosen)].reshape(-1)
        else:
            sums = references([answer for i in chosen for answer in pairs[i].answers])
        if not torch.isfinite(sums).all():
            raise NotFinite("a reference log-probability is not finite")
        for i, (first, second) in zip(chosen, sums.reshape(-1, 2).tolist(), strict=True):
            found[i] = first, second

    run_isolated(kept, refer, lambda i, error: blame(pairs[i].pair.event_id, error))
    return [_make_preference(pairs[i], found[i], weights[i]) for i in kept if i in found]


def _make_preference(encoded: EncodedPair, references: tuple[float, float], weight: float) -> Preference:
    if not math.isfinite(weight):
        raise ValueError(f"{encoded.pair.event_id} has the weight {weight}")
    answers = [(encoded.first, references[0]), (encoded.second, references[1])]
    if encoded.pair.preferred == "second":
        answers.reverse()
    (chosen, chosen_reference), (rejected, rejected_reference) = answers
    return Preference(
        event_id=encoded.pair.event_id,
        prompt=encoded.prompt,
        chosen=chosen,
        rejected=rejected,
        chosen_reference=chosen_reference,
        rejected_reference=rejected_reference,
        weight=weight,
        is_tie=not encoded.decisive,
    )

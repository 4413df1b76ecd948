"""SFT: negative log-likelihood of answers that somebody wrote, by the policy adapter or by all of the base's weights.

The loss of a step is a mean over its answers' tokens, weighted. Goes on from its snapshot after a kill, as a DPO round does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.learn.loop import Loop, ParameterGroup, Part, Schedule, Snapshots
from trainer.learn.steps import count_steps, plan_steps
from trainer.learn.training import RATES, NothingToTrainOn, Progress, Task, ignore_progress, run_steps
from trainer.math.losses import answer_nll
from trainer.model.logprobs import answer_logprobs
from trainer.model.sharding import count_processes
from trainer.sections.training import SftSection
from trainer.text.batches import plan_batches
from trainer.text.rejected import Reject, log_rejected
from trainer.text.transcript import EncodedAnswer

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

PART = "sft"


@dataclass(frozen=True)
class Example:
    """An answer to learn, and how much it weighs."""

    row_id: str
    encoded: EncodedAnswer
    weight: float


def run_sft(
    backbone: Backbone,
    rows: Sequence[EncodedAnswer],
    settings: SftSection,
    *,
    ids: Sequence[str],
    weights: Sequence[float] | None = None,
    adapter: str | None = "policy",
    seed: int = 0,
    snapshots: Snapshots | None = None,
    progress: Progress = ignore_progress,
    reject: Reject = log_rejected,
) -> dict[str, float]:
    """Train an adapter from where it stands, or with adapter=None all weights of the base, adapters off.

    ids: the rows' event ids, on which order depends. weights: one a row, 1 if None; 0 leaves a row out. Returns mean figures
    of the last epoch. Raises NothingToTrainOn if no row is usable.
    """
    given = [1.0] * len(rows) if weights is None else weights
    return train_examples(
        backbone,
        make_examples(rows, ids, given),
        settings,
        adapter=adapter,
        seed=seed,
        snapshots=snapshots,
        progress=progress,
        reject=reject,
    )


def make_examples(rows: Sequence[EncodedAnswer], ids: Sequence[str], weights: Sequence[float]) -> list[Example]:
    """The answers that have tokens and a weight. Raises NothingToTrainOn if there are none."""
    examples = [Example(i, row, w) for i, row, w in zip(ids, rows, weights, strict=True) if w > 0 and row.answer]
    if not examples:
        raise NothingToTrainOn(f"{len(rows)} answers, none of them usable")
    return examples


def train_examples(
    backbone: Backbone,
    examples: Sequence[Example],
    settings: SftSection,
    *,
    adapter: str | None = "policy",
    seed: int = 0,
    snapshots: Snapshots | None = None,
    progress: Progress = ignore_progress,
    reject: Reject = log_rejected,
) -> dict[str, float]:
    """The training of `run_sft`. All processes of a distributed run do it alike; those can train adapters alone."""
    plan = plan_steps(
        [example.row_id for example in examples],
        [example.encoded.length for example in examples],
        batch_size=settings.batch_size,
        epochs=settings.epochs,
        seed=seed,
        num_steps=settings.num_steps,
    )
    schedule = Schedule(settings.lr or RATES[backbone.preset], len(plan), settings.warmup_share, settings.decay)
    step = SftStep(backbone, examples)

    def blame(example: Example, error: Exception) -> None:
        if not (backbone.is_sound("policy" if adapter is None else adapter)):
            raise error
        reject(example.row_id, PART, error)

    with train_weights(backbone, adapter) as parameters:
        loop = Loop(
            [ParameterGroup(adapter or "base", parameters)],
            schedule,
            betas=(0.9, settings.adam_beta2),
            weight_decay=settings.weight_decay,
        )
        task = Task(examples, list(parameters.values()), step.make_parts, step.summarise, blame)
        per_epoch = count_steps(len(examples), settings.batch_size)
        last, _ = run_steps(loop, task, plan, steps_per_epoch=per_epoch, snapshots=snapshots, progress=progress)
    return {**last, "num_rows": float(len(examples)), "num_steps": float(loop.step_number)}


@contextmanager
def train_weights(backbone: Backbone, adapter: str | None) -> Iterator[Mapping[str, nn.Parameter]]:
    """The adapter's parameters, or the base's, as the only ones that take gradients."""
    if adapter is None:
        with backbone.adapters.training_base() as parameters:
            yield parameters
    else:
        with backbone.adapters.training(adapter):
            yield backbone.adapters.parameters_of(adapter)


class SftStep:
    """Makes the parts of steps; weights are normalised over the tokens of all examples."""

    def __init__(self, backbone: Backbone, examples: Sequence[Example]) -> None:
        self._backbone = backbone
        tokens = [len(example.encoded.answer) for example in examples]
        weighed = sum(example.weight * number for example, number in zip(examples, tokens, strict=True))
        self._mean_weight = weighed / sum(tokens)

    def make_parts(self, rows: Sequence[Example]) -> list[Part]:
        """The step's micro-batches within the token budget."""
        total = self._mean_weight * sum(len(row.encoded.answer) for row in rows)
        plans = plan_batches([row.encoded.length for row in rows], self._backbone.token_budget, count_processes())
        return [self._make_part([rows[i] for i in plan], total) for plan in plans]

    def _make_part(self, rows: Sequence[Example], total: float) -> Part:
        def part() -> tuple[Tensor, dict[str, float]]:
            batch = self._backbone.make_batch([(row.encoded.prompt, (row.encoded.answer,)) for row in rows])
            sums, counts = answer_logprobs(self._backbone, batch)
            weights = torch.tensor([row.weight for row in rows], device=sums.device)
            figures = {"rows": float(len(rows)), "logprob": sums.sum().item(), "tokens": float(counts.sum().item())}
            return answer_nll(sums, weights, total), figures

        return part

    def summarise(self, figures: dict[str, float]) -> dict[str, float]:
        """nll: mean a token without weights; logprob: mean of an answer."""
        rows = figures.pop("rows")
        return {**figures, "nll": -figures["logprob"] / figures["tokens"], "logprob": figures["logprob"] / rows}

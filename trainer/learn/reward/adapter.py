"""The part of a score that an adapter on the backbone learns: what style and frozen hidden states leave unexplained.

Costs a forward and a backward of the whole model, so it learns from as many pairs as the machine has time for. A batch that
fails is split until the pair is found that is to blame; the others are not trained on twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.isolation import NotFinite, run_isolated
from trainer.learn.loop import Loop, ParameterGroup
from trainer.learn.reward.inputs import Read, compute_states
from trainer.math.choices import Choices, choice_losses
from trainer.model.heads import AdapterHead, Standardiser, last_states
from trainer.text.batches import plan_batches

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone
    from trainer.sections.reward import RewardSection

ADAPTER_RATES = {"tiny": 1e-3, "small": 2e-4}
LARGE_RATE = 5e-5


@dataclass(frozen=True)
class Lesson:
    """Pairs to learn from. offsets: (pairs,), what the other parts say of first less second; rows: one per pair, in order."""

    pairs: Sequence[Read]
    offsets: Tensor
    rows: Choices
    first_place: float
    log_nu: float


class AdapterPart:
    """An adapter with its head and their optimizer."""

    def __init__(self, backbone: Backbone, adapter: str, settings: RewardSection, seed: int) -> None:
        self._backbone, self._settings, self.adapter = backbone, settings, adapter
        self.head = AdapterHead(backbone.hidden_size).to(backbone.device)
        self.standardiser = Standardiser(backbone.hidden_size, backbone.hidden_size, seed).to(backbone.device)
        rate = settings.adapter_lr or ADAPTER_RATES.get(backbone.preset, LARGE_RATE)
        self.loop = Loop(
            [
                ParameterGroup("adapter", backbone.adapters.parameters_of(adapter), rate),
                ParameterGroup("adapter_head", dict(self.head.named_parameters()), 10 * rate),
            ],
            None,
            weight_decay=0.01,
        )

    @property
    def max_pairs(self) -> int:
        """Most pairs of an update that train the adapter; 0: it is not trained."""
        if self._settings.adapter_pairs is not None:
            return self._settings.adapter_pairs
        is_dear = self._backbone.preset == "small" and self._backbone.device.type == "cpu"
        return 0 if is_dear else 2 * self._settings.update_every_preferences

    @property
    def has_learnt(self) -> bool:
        return self.loop.step_number > 0

    def score(self, rows: Sequence[Read], fail: Callable[[Read, Exception], None]) -> dict[int, Tensor]:
        """Scores (answers,) of each row that can be read, by its number; nothing before the adapter has learnt."""
        if not self.has_learnt:
            return {}
        states = compute_states(self._backbone, rows, last_states, fail, self.adapter)
        with torch.no_grad():
            return {number: self._apply(state.to(self._backbone.device)).cpu() for number, state in states.items()}

    def _apply(self, states: Tensor) -> Tensor:
        scores: Tensor = self.head(self.standardiser(states))
        return scores

    def train(self, lesson: Lesson, fail: Callable[[Read, Exception], None]) -> float:
        """One pass; returns the mean loss, 0 without pairs."""
        losses: list[float] = []
        with self._backbone.adapters.training(self.adapter):

            def step(numbers: Sequence[int]) -> None:
                losses.append(self.loop.step(self._split(numbers, lesson))["loss"])

            size = self._settings.adapter_batch_size
            for start in range(0, len(lesson.pairs), size):
                numbers = list(range(start, min(start + size, len(lesson.pairs))))
                run_isolated(numbers, step, lambda number, error: self._blame(lesson.pairs[number], error, fail))
        return sum(losses) / len(losses) if losses else 0.0

    def _blame(self, row: Read, error: Exception, fail: Callable[[Read, Exception], None]) -> None:
        """Raises the error if the model itself is broken."""
        if not self._backbone.is_sound(self.adapter):
            raise error
        fail(row, error)

    def _split(self, numbers: Sequence[int], lesson: Lesson) -> list[Callable[[], tuple[Tensor, dict[str, float]]]]:
        """Micro-batches of a step, each with its share of the loss."""
        total = float(lesson.rows.weights[list(numbers)].sum())
        if not total > 0:
            raise NotFinite("the pairs of a step weigh nothing")
        planned = plan_batches([lesson.pairs[i].length for i in numbers], self._backbone.token_budget)
        chunks = [[numbers[i] for i in chosen] for chosen in planned]
        return [lambda chunk=chunk: (self._compute_loss(chunk, lesson, total), {}) for chunk in chunks]  # type: ignore[misc]

    def _compute_loss(self, numbers: list[int], lesson: Lesson, total: float) -> Tensor:
        backbone = self._backbone
        batch = backbone.make_batch([(lesson.pairs[i].prompt, lesson.pairs[i].answers) for i in numbers])
        scores = self._apply(last_states(backbone.hidden(batch), batch)).view(-1, 2)
        rows = lesson.rows.pick(torch.tensor(numbers)).to_device(backbone.device)
        differences = scores[:, 0] - scores[:, 1] + lesson.offsets[numbers].to(backbone.device)
        losses = choice_losses(
            differences, rows, first_place=scores.new_tensor(lesson.first_place), log_nu=scores.new_tensor(lesson.log_nu),
            rated_intercept=scores.new_zeros(()), smoothing=self._settings.label_smoothing,
        )  # fmt: skip
        centred = self._settings.centre_weight * scores.sum(1).square()
        return (rows.weights * (losses + centred)).sum() / total

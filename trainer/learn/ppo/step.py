"""One optimizer step of PPO: micro-batches of the policy, then of the value, each under its own adapter.

Answers to one prompt share its row. Losses are means over all tokens of the step. No two graphs are held at a time, and no
adapter computes between another's forward and backward. Does not choose the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.loop import Part
from trainer.learn.ppo.experience import Experience
from trainer.learn.ppo.value import ADAPTER, token_values
from trainer.math.ppo_losses import approximate_kl, policy_losses, value_losses
from trainer.model.heads import ValueHead
from trainer.model.logprobs import token_logprobs
from trainer.model.sharding import count_processes
from trainer.sections.training import PpoSection
from trainer.text.batches import Batch, count_row, plan_batches

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

Row = tuple[int, ...]
"""Answers to one prompt, by their numbers in the experience."""


class PpoStep:
    """Makes the parts of steps over one experience. switch: makes an adapter the one in training."""

    def __init__(
        self,
        backbone: Backbone,
        section: PpoSection,
        value: ValueHead,
        experience: Experience,
        *,
        temperature: float,
        switch: Callable[[str], None],
    ) -> None:
        self._backbone, self._section, self._value, self._experience = backbone, section, value, experience
        self._temperature, self._switch = temperature, switch
        self._places = experience.list_places()

    def count_tokens(self, row: Row) -> int:
        """Tokens of a row: its prompt once, and its answers."""
        answers = [self._experience.answers[i] for i in row]
        return count_row(answers[0].prompt, [answer.answer for answer in answers])

    def make_parts(self, rows: Sequence[Row]) -> list[Part]:
        """The step's micro-batches within the token budget, the policy's first."""
        total = sum(len(self._places[i]) for row in rows for i in row)
        plans = plan_batches([self.count_tokens(row) for row in rows], self._backbone.token_budget, count_processes())
        chunks = [[rows[i] for i in plan] for plan in plans]
        policy = [lambda chunk=chunk: self._compute_policy(chunk, total) for chunk in chunks]
        value = [lambda chunk=chunk: self._compute_value(chunk, total) for chunk in chunks]
        return [*policy, *value]

    def _make_batch(self, rows: Sequence[Row]) -> tuple[Batch, Callable[[Tensor], Tensor]]:
        """The rows' answers, and what picks their tokens' part of a tensor of the experience."""
        answers = self._experience.answers
        batch = self._backbone.make_batch([(answers[row[0]].prompt, [answers[i].answer for i in row]) for row in rows])
        at = torch.tensor(list(chain.from_iterable(self._places[i] for row in rows for i in row)))
        return batch, lambda tensor: tensor[at].to(self._backbone.device)

    def _compute_policy(self, rows: Sequence[Row], total: int) -> tuple[Tensor, dict[str, float]]:
        self._switch("policy")
        batch, pick = self._make_batch(rows)
        logprobs, _ = token_logprobs(self._backbone, batch, self._temperature)
        log_ratio = logprobs - pick(self._experience.old)
        losses, is_clipped = policy_losses(pick(self._experience.advantages), log_ratio, self._section.clip)
        loss = (pick(self._experience.weights) * losses).sum()
        sums = {
            "tokens": torch.ones_like(log_ratio),
            "clip_share": is_clipped,
            "approximate_kl": approximate_kl(log_ratio),
            "entropy": -logprobs,
        }
        return loss / total, {"policy_loss": loss.item(), **_sum_up(sums)}

    def _compute_value(self, rows: Sequence[Row], total: int) -> tuple[Tensor, dict[str, float]]:
        self._switch(ADAPTER)
        batch, pick = self._make_batch(rows)
        values = token_values(self._backbone, self._value, batch)
        losses, is_clipped = value_losses(
            values, pick(self._experience.values), pick(self._experience.returns), self._section.value_clip
        )
        loss = losses.sum()
        figures = {"value_loss": loss.item(), **_sum_up({"value_clip_share": is_clipped})}
        return self._section.value_weight * loss / total, figures

    def is_near(self, figures: dict[str, float]) -> bool:
        """Whether the policy is still as near the answers' own as an iteration may take it; figures: summed."""
        return figures["approximate_kl"] <= self._section.max_approximate_kl * figures["tokens"]

    def summarise(self, figures: dict[str, float]) -> dict[str, float]:
        """Means over the step's tokens."""
        tokens = figures["tokens"]
        summed = ("policy_loss", "value_loss", "clip_share", "value_clip_share", "approximate_kl", "entropy")
        return {**figures, **{name: figures[name] / tokens for name in summed}}


def _sum_up(tensors: dict[str, Tensor]) -> dict[str, float]:
    sums = torch.stack([tensor.detach().float().sum() for tensor in tensors.values()])
    return dict(zip(tensors, sums.tolist(), strict=True))

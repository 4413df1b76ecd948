"""One optimizer step of DPO: micro-batches of pairs whose shares of the loss add up, and the figures of the step.

Both answers of a pair share their prompt's row. A pair's share is weight / (mean weight of the epoch x pairs of the step).
Does not choose the pairs, and knows nothing of schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.loop import Part
from trainer.math.losses import (
    STEP_WIDE,
    LossSettings,
    PairLogprobs,
    falling_nll,
    pair_losses,
    robust_mean,
    tie_loss,
)
from trainer.model.logprobs import answer_logprobs
from trainer.model.sharding import count_processes
from trainer.sections.training import DpoSection
from trainer.text.batches import plan_batches

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone


@dataclass(frozen=True)
class Preference:
    """A pair to train on. Of a tie, `chosen` is the first answer and `rejected` the second; references are summed nats."""

    event_id: str
    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    chosen_reference: float
    rejected_reference: float
    weight: float
    is_tie: bool

    @property
    def length(self) -> int:
        """Tokens of its row."""
        return len(self.prompt) + len(self.chosen) + len(self.rejected)


def read_loss_settings(section: DpoSection) -> LossSettings:
    """The numbers of the loss, as math/losses takes them."""
    return LossSettings(
        kind=section.loss,
        beta=section.beta,
        beta_norm=section.beta_norm,
        label_smoothing=section.label_smoothing,
        divergence=section.divergence,
        alpha=section.divergence_alpha,
        discopop_tau=section.discopop_tau,
    )


class DpoStep:
    """Makes the parts of steps. mean_weight: of all pairs of the epoch."""

    def __init__(self, backbone: Backbone, section: DpoSection, mean_weight: float) -> None:
        self._backbone, self._section, self._mean_weight = backbone, section, mean_weight
        self._settings = read_loss_settings(section)

    def make_parts(self, rows: Sequence[Preference]) -> list[Part]:
        """The step's micro-batches within the token budget; each computes its share of the loss."""
        total = self._mean_weight * len(rows)
        plans = plan_batches([row.length for row in rows], self._backbone.token_budget, count_processes())
        chunks = [[rows[i] for i in plan] for plan in plans]
        if self._settings.kind in STEP_WIDE and len(chunks) > 1:
            return self._make_step_wide(chunks, total)
        return [self._make_part(chunk, total) for chunk in chunks]

    def _make_part(self, rows: Sequence[Preference], total: float) -> Part:
        def part() -> tuple[Tensor, dict[str, float]]:
            pairs, weights, is_tie = self._measure(rows)
            return self._compute_loss(pairs, weights, is_tie) / total, self._sum_figures(pairs, is_tie)

        return part

    def _make_step_wide(self, chunks: Sequence[Sequence[Preference]], total: float) -> list[Part]:
        """For losses that look at all pairs of the step: log-probabilities first, without gradients, then each part takes
        the step's gradient with respect to its own."""
        with torch.no_grad():
            measured = [self._measure(rows) for rows in chunks]
        joined = join_pairs([pairs for pairs, _, _ in measured])
        chosen, rejected = joined.chosen.requires_grad_(), joined.rejected.requires_grad_()
        weights = torch.cat([weights for _, weights, _ in measured])
        is_tie = torch.cat([is_tie for _, _, is_tie in measured])
        loss = self._compute_loss(joined, weights, is_tie) / total
        slopes = torch.autograd.grad(loss, (chosen, rejected))
        value, parts, start = loss.detach() / len(chunks), [], 0
        for rows in chunks:
            end = start + len(rows)
            parts.append(self._make_linear_part(rows, value, slopes[0][start:end], slopes[1][start:end]))
            start = end
        return parts

    def _make_linear_part(self, rows: Sequence[Preference], value: Tensor, up: Tensor, down: Tensor) -> Part:
        """A part of this value whose derivatives with respect to the answers' log-probabilities are given."""

        def part() -> tuple[Tensor, dict[str, float]]:
            pairs, _, is_tie = self._measure(rows)
            moved = (up * pairs.chosen + down * pairs.rejected).sum()
            return value + moved - moved.detach(), self._sum_figures(pairs, is_tie)

        return part

    def _measure(self, rows: Sequence[Preference]) -> tuple[PairLogprobs, Tensor, Tensor]:
        """Log-probabilities of pairs under the active adapter; weights and whether it is a tie, all (pairs,)."""
        batch = self._backbone.make_batch([(row.prompt, (row.chosen, row.rejected)) for row in rows])
        sums, counts = answer_logprobs(self._backbone, batch)
        values = [[row.chosen_reference, row.rejected_reference, row.weight] for row in rows]
        chosen_reference, rejected_reference, weights = torch.tensor(values, device=sums.device).unbind(1)
        pairs = PairLogprobs(sums[0::2], sums[1::2], chosen_reference, rejected_reference, counts[0::2], counts[1::2])
        return pairs, weights, torch.tensor([row.is_tie for row in rows], device=sums.device)

    def _compute_loss(self, pairs: PairLogprobs, weights: Tensor, is_tie: Tensor) -> Tensor:
        """Sum of weight x loss over pairs: decisive ones by the loss that is set, ties by Rao and Kupper's."""
        section, decisive = self._section, ~is_tie
        loss = (weights * tie_loss(pairs.log_ratio, section.beta, section.tie_nu))[is_tie].sum()
        if not decisive.any():
            return loss
        pairs, weights = select_pairs(pairs, decisive), weights[decisive]
        losses = pair_losses(pairs, self._settings)
        if section.loss == "robust":
            loss = loss + weights.sum() * robust_mean(losses, weights, section.robust_temperature)
        elif section.loss in STEP_WIDE:  # sorted: a loss belongs to no pair, nor does a weight
            loss = loss + weights.sum() * losses.mean()
        else:
            loss = loss + (weights * losses).sum()
        if section.nll_weight:
            nll = falling_nll(pairs.chosen, pairs.chosen_reference, pairs.chosen_tokens)
            loss = loss + section.nll_weight * (weights * nll).sum()
        return loss

    def _sum_figures(self, pairs: PairLogprobs, is_tie: Tensor) -> dict[str, float]:
        """Sums over pairs; those of a direction over decisive pairs alone. kl: half the squared log-ratio of an answer."""
        decisive = (~is_tie).float()
        chosen, rejected, h = pairs.chosen_ratio, pairs.rejected_ratio, pairs.log_ratio
        rows: dict[str, Tensor] = {
            "pairs": torch.ones_like(h),
            "decisive": decisive,
            "log_ratio": decisive * h,
            "accuracy": decisive * (h > 0),
            "chosen_ratio": decisive * chosen,
            "rejected_ratio": decisive * rejected,
            "chosen_logprob": decisive * pairs.chosen,
            "rejected_logprob": decisive * pairs.rejected,
            "log_ratio_abs": h.abs(),
            "kl": 0.25 * (chosen**2 + rejected**2),
            "tokens": pairs.chosen_tokens + pairs.rejected_tokens,
        }
        sums = torch.stack([tensor.detach().float() for tensor in rows.values()]).sum(1)
        return dict(zip(rows, sums.tolist(), strict=True))

    def summarise(self, figures: dict[str, float]) -> dict[str, float]:
        """Means of a step's summed figures; margin is beta x log_ratio, in the loss's units."""
        pairs, decisive = figures.pop("pairs"), figures.pop("decisive")
        for name in ("log_ratio", "accuracy", "chosen_ratio", "rejected_ratio", "chosen_logprob", "rejected_logprob"):
            figures[name] /= max(1.0, decisive)
        for name in ("log_ratio_abs", "kl"):
            figures[name] /= pairs
        return {**figures, "margin": self._section.beta * figures["log_ratio"]}


def join_pairs(parts: Sequence[PairLogprobs]) -> PairLogprobs:
    """Pairs of several batches, one after the other."""
    return _map_pairs(lambda name: torch.cat([getattr(part, name) for part in parts]))


def select_pairs(pairs: PairLogprobs, keep: Tensor) -> PairLogprobs:
    """The pairs where keep (pairs,) is True."""
    return _map_pairs(lambda name: getattr(pairs, name)[keep])


def _map_pairs(read: Callable[[str], Tensor]) -> PairLogprobs:
    return PairLogprobs(*(read(name) for name in PairLogprobs.__dataclass_fields__))

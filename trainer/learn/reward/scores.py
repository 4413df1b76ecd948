"""Scores of answers in draws: what a reward model says, and how unsure it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """draws: (answers, K); mean and std over draws, (answers,); `cautious` is mean - lambda std."""

    draws: Tensor
    mean: Tensor
    std: Tensor
    cautious: Tensor

    def minus(self, other: Scores, pessimism: float = 1.0) -> Scores:
        """Of the difference, which is taken per draw: what two answers share is no doubt about which is better."""
        return make_scores(self.draws - other.draws, pessimism)


def make_scores(draws: Tensor, pessimism: float) -> Scores:
    """Scores of draws, (answers, K)."""
    mean, std = draws.mean(1), draws.std(1)
    return Scores(draws, mean, std, mean - pessimism * std)


@dataclass(frozen=True)
class Measured:
    """Parts of the scores of some rows' answers, all (answers,) but features (answers, F) and doubts (answers, K)."""

    features: Tensor
    head: Tensor
    doubts: Tensor
    adapter: Tensor

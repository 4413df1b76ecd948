"""What each token of an answer was worth beside what was expected of it, and how strong a penalty on KL keeps it bounded. Pure.

Tensors are (answers, tokens), padded anywhere; mask: True = keep. What is not kept counts nothing and comes back as 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_ERROR = 0.2  # of the adaptive coefficient, as a share of its target


def estimate_advantages(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """(advantages, returns) by GAE: A_t = sum_l (gamma lam)^l delta_(t+l), delta_t = r_t + gamma V_(t+1) - V_t (1506.02438, eq.
    16); returns are A + V.

    values: V of the state in which a token is chosen, before it is. V is 0 behind an answer's last token.
    """
    rewards, values = rewards.masked_fill(~mask, 0), values.masked_fill(~mask, 0)  # also what is no number
    advantages = torch.zeros_like(values)
    following, next_value = torch.zeros_like(values[:, 0]), torch.zeros_like(values[:, 0])
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        is_kept = mask[:, t]
        following = torch.where(is_kept, delta + gamma * lam * following, following)
        next_value = torch.where(is_kept, values[:, t], next_value)
        advantages[:, t] = following * is_kept
    return advantages, advantages + values


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values less their mean, over their population standard deviation (divided by n, not n - 1) + 1e-8, over the mask."""
    kept = values[mask]
    if not kept.numel():
        return torch.zeros_like(values)
    spread = (kept.var(unbiased=False) + 1e-8).sqrt()
    return torch.where(mask, (values - kept.mean()) / spread, torch.zeros_like(values))


@dataclass(frozen=True)
class AdaptiveKl:
    """Moves the KL penalty's coefficient until the KL of an answer, summed over its tokens, is at `target` (1909.08593, eq. 4).

    horizon: answers over which an error of 1 would double it.
    """

    target: float
    horizon: float

    def adapt(self, coefficient: float, kl: float, num_answers: int) -> float:
        """The coefficient after so many answers of this mean KL, nats."""
        error = min(max(kl / self.target - 1, -LARGEST_ERROR), LARGEST_ERROR)
        return coefficient * (1 + error * num_answers / self.horizon)

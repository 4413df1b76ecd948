"""PPO's losses, token by token; callers weigh them and take the mean over all tokens of a step. Pure tensor functions.

Log-probabilities are at the sampling temperature, in nats. `old` is of the policy as it was when its answers were taken in,
`sampled` what the sampler drew them by. Advantages are in advantages.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 20.0


def clamp_log_ratio(log_ratio: Tensor) -> Tensor:
    """At most +-LARGEST_LOG_RATIO, so that its exponential is finite."""
    return log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)


def policy_losses(advantages: Tensor, log_ratio: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(losses, whether the clipped one is taken): max(-A rho, -A clip(rho, 1 - e, 1 + e)), rho = exp(log pi - log old)
    (1707.06347, eq. 7).

    All of one shape. log_ratio is clamped first.
    """
    ratio = clamp_log_ratio(log_ratio).exp()
    whole, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(whole, clipped), clipped > whole


def value_losses(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """(losses, whether the clipped one is taken): 1/2 max((V - R)^2, (clip(V, old - e, old + e) - R)^2) (2005.12729, sec. 3).

    All of one shape.
    """
    near = torch.clamp(values, old_values - clip, old_values + clip)
    whole, clipped = (values - returns).square(), (near - returns).square()
    return 0.5 * torch.maximum(whole, clipped), clipped > whole


def k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """log pi - log ref of sampled tokens: unbiased for KL(pi, ref), of either sign (Schulman 2020, k1)."""
    return logprobs - reference


def k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """exp(-x) - 1 + x at x = log pi - log ref: unbiased for KL(pi, ref), never negative (Schulman 2020, k3)."""
    x = clamp_log_ratio(logprobs - reference)
    return torch.expm1(-x) + x


def approximate_kl(log_ratio: Tensor) -> Tensor:
    """Half the squared log-ratio: how far a policy has moved from the one before, nats a token (Schulman 2020, k2)."""
    return 0.5 * clamp_log_ratio(log_ratio).square()


def importance_weights(old: Tensor, sampled: Tensor, cap: float) -> Tensor:
    """min(old / sampled, cap) of each token's probabilities: what another program, or an older policy, drew counts as what it
    would be worth if drawn now (1802.01561, eq. 1; truncated importance sampling)."""
    return clamp_log_ratio(old - sampled).exp().clamp(max=cap)


def keep_close(old: Tensor, sampled: Tensor, mask: Tensor, most: float) -> Tensor:
    """Answers, (answers,), whose geometric-mean ratio exp(mean(old - sampled)) lies within [1 / most, most].

    old, sampled, mask (True = keep): (answers, tokens). What is not finite is not close; nor is an answer without tokens.
    """
    difference = torch.where(mask, old - sampled, torch.zeros_like(old)).sum(1) / mask.sum(1)
    return difference.abs() <= math.log(most)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(R - V) / Var(R): 1 if values foresee returns, 0 if they say no more than a constant; 0 where R never varies."""
    spread = returns.var(unbiased=False)
    return float(1 - (returns - values).var(unbiased=False) / spread) if spread > 0 else 0.0

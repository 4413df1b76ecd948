"""Losses of preference learning, element by element; callers weigh and average.

Pure tensor functions. `difference` is score of the one minus score of the other; `log_ratio` is h = (log pi(y+) - log
ref(y+)) - (log pi(y-) - log ref(y-)), summed over tokens. PPO's losses are not here.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def rao_kupper_logprobs(difference: Tensor, log_nu: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of win, loss and tie at nu = exp(log_nu) > 1 (Rao and Kupper 1967, eq. 2.3)."""
    log_nu = torch.as_tensor(log_nu, dtype=difference.dtype)
    win = logsigmoid(difference - log_nu)
    loss = logsigmoid(-difference - log_nu)
    tie = torch.log(torch.expm1(2 * log_nu)) + win + loss  # (nu^2 - 1) ab / ((a + nu b)(nu a + b))
    return win, loss, tie


def dpo_loss(log_ratio: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO (Rafailov et al. 2023, eq. 7); with smoothing cDPO: the label is wrong with that chance (Mitchell 2023)."""
    scaled = beta * log_ratio
    return -(1 - label_smoothing) * logsigmoid(scaled) - label_smoothing * logsigmoid(-scaled)


def ipo_loss(log_ratio: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 (Azar et al. 2023, eq. 17); h is a sum over tokens, not a mean."""
    return (log_ratio - 1 / (2 * beta)) ** 2


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """Mean of values under weights >= 0, both of one shape; 0 if all weights are 0."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-8)

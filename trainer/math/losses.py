"""Losses of preference learning, pair by pair; callers weigh them and take the mean.

Pure tensor functions. `difference` is the score of one answer minus the other's; h is the log-ratio of a pair, (log pi(y+) -
log ref(y+)) - (log pi(y-) - log ref(y-)), summed over tokens. Only `robust_mean`, "aot" and "aot_unpaired" look at several
pairs at once. PPO's losses are in ppo_losses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, relu

LOG_2 = math.log(2)


def rao_kupper_logprobs(difference: Tensor, log_nu: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of win, loss and tie at nu = exp(log_nu) > 1 (Rao and Kupper 1967, eq. 2.3)."""
    log_nu = torch.as_tensor(log_nu, dtype=difference.dtype)
    win = logsigmoid(difference - log_nu)
    loss = logsigmoid(-difference - log_nu)
    tie = torch.log(torch.expm1(2 * log_nu)) + win + loss  # (nu^2 - 1) ab / ((a + nu b)(nu a + b))
    return win, loss, tie


def tie_loss(log_ratio: Tensor, beta: float, nu: float) -> Tensor:
    """-log P(tie) at beta h: least at h = 0, so a tie pulls the pair back to the reference (2409.17431, DPO-RK)."""
    return -rao_kupper_logprobs(beta * log_ratio, math.log(nu))[2]


def dpo_loss(log_ratio: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """DPO (2305.18290, eq. 7); with smoothing cDPO: the label is wrong with that chance (Mitchell 2023)."""
    scaled = beta * log_ratio
    return -(1 - label_smoothing) * logsigmoid(scaled) - label_smoothing * logsigmoid(-scaled)


def ipo_loss(log_ratio: Tensor, beta: float) -> Tensor:
    """(h - 1 / (2 beta))^2 (2310.12036, eq. 17); h is a sum over tokens, or a mean for "ipo_norm"."""
    return (log_ratio - 1 / (2 * beta)) ** 2


def hinge_loss(log_ratio: Tensor, beta: float) -> Tensor:
    """max(0, 1 - beta h): SLiC's hinge on normalised likelihoods (2305.10425; 2309.06657, hinge-norm)."""
    return relu(1 - beta * log_ratio)


def unbiased_dpo_loss(log_ratio: Tensor, beta: float, flip_rate: float) -> Tensor:
    """rDPO: unbiased if labels are flipped with chance flip_rate < .5 (2403.00409, rDPO); unbounded below, unlike cDPO."""
    scaled = beta * log_ratio
    return ((flip_rate - 1) * logsigmoid(scaled) + flip_rate * logsigmoid(-scaled)) / (1 - 2 * flip_rate)


def exo_loss(log_ratio: Tensor, beta: float, epsilon: float) -> Tensor:
    """KL from the pair's softmax to (1 - epsilon, epsilon), epsilon > 0: reverse KL (2402.00856, eq. 16)."""
    scaled = beta * log_ratio
    log_win, log_lose = logsigmoid(scaled), logsigmoid(-scaled)
    return log_win.exp() * (log_win - math.log1p(-epsilon)) + log_lose.exp() * (log_lose - math.log(epsilon))


def discopop_loss(log_ratio: Tensor, beta: float, tau: float) -> Tensor:
    """Logistic where h < 0, exponential where h > 0, mixed by sigmoid(beta h / tau) (2406.08414, eq. 5)."""
    scaled = beta * log_ratio
    share = torch.sigmoid(scaled / tau)
    return -(1 - share) * logsigmoid(scaled) + share * torch.exp(-scaled)


def nca_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Noise contrast: each answer's log-ratio for itself, not their difference (2402.05369, pairwise NCA)."""
    up, down = beta * chosen, beta * rejected
    return -logsigmoid(up) - 0.5 * logsigmoid(-up) - 0.5 * logsigmoid(-down)


def bco_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """A classifier of good and bad whose logit is beta times the log-ratio (2404.04656), without its running shift."""
    return -logsigmoid(beta * chosen) - logsigmoid(-beta * rejected)


def sppo_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Log-ratios to +-1 / (2 beta): self-play with hard labels (2405.00675, eq. 4.7)."""
    return (chosen - 0.5 / beta) ** 2 + (rejected + 0.5 / beta) ** 2


def apo_zero_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Chosen up and rejected down, each from the reference: for answers better than the policy's (2408.06266, eq. 7)."""
    return torch.sigmoid(-beta * chosen) + torch.sigmoid(beta * rejected)


def apo_down_loss(chosen: Tensor, rejected: Tensor, beta: float) -> Tensor:
    """Both down, rejected more: for answers worse than the policy's (2408.06266, eq. 8)."""
    return torch.sigmoid(beta * chosen) + torch.sigmoid(-beta * (chosen - rejected))


def divergence_score(log_ratio: Tensor, divergence: str, alpha: float = 0.5) -> Tensor:
    """f'(pi / ref) of an f-divergence, which takes the log-ratio's place (2309.16240, table 1).

    "reverse_kl" (the log-ratio itself), "forward_kl", "js_divergence" or "alpha_divergence". Raises ValueError.
    """
    if divergence == "reverse_kl" or (divergence == "alpha_divergence" and abs(alpha - 1) < 1e-6):
        return log_ratio
    if divergence == "forward_kl":
        return 1 - torch.exp(-log_ratio)
    if divergence == "js_divergence":
        return LOG_2 + logsigmoid(log_ratio)
    if divergence == "alpha_divergence":
        return torch.expm1(((alpha - 1) * log_ratio).clamp(max=80)) / (alpha - 1)
    raise ValueError(f"unknown divergence {divergence!r}")


def robust_mean(losses: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """-b' log mean_w exp(-l / b'): pairs of large loss, the likely slips, count less (2407.07880, Dr. DPO)."""
    shares = weights / weights.sum().clamp(min=1e-8)
    return -temperature * torch.logsumexp(shares.log() - losses / temperature, 0)


def falling_nll(chosen: Tensor, reference: Tensor, num_tokens: Tensor) -> Tensor:
    """Negative log-likelihood a token where it lies below the reference's, 0 elsewhere (2404.19733, eq. 4; 2402.13228)."""
    return torch.where(chosen.detach() < reference, -chosen / num_tokens, 0.0)


def answer_nll(sums: Tensor, weights: Tensor, total: float) -> Tensor:
    """Weighted negative log-likelihood of answers: sums (answers,) over their tokens; `total` is the step's weight in tokens."""
    return -(sums * weights).sum() / total


@dataclass(frozen=True)
class PairLogprobs:
    """What a pair's loss is made of, all (pairs,): summed log-probabilities under policy and reference, token counts."""

    chosen: Tensor
    rejected: Tensor
    chosen_reference: Tensor
    rejected_reference: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        return self.chosen - self.chosen_reference

    @property
    def rejected_ratio(self) -> Tensor:
        return self.rejected - self.rejected_reference

    @property
    def log_ratio(self) -> Tensor:
        return self.chosen_ratio - self.rejected_ratio


@dataclass(frozen=True)
class LossSettings:
    """Which loss, and its numbers. beta_norm: beta of "sigmoid_norm", whose log-ratios are means over tokens."""

    kind: str = "sigmoid"
    beta: float = 0.1
    beta_norm: float = 5.0
    label_smoothing: float = 0.0
    divergence: str = "reverse_kl"
    alpha: float = 0.5
    discopop_tau: float = 0.05


OfRatio = Callable[[Tensor, LossSettings], Tensor]
OfAnswers = Callable[[Tensor, Tensor, LossSettings], Tensor]

_OF_DIFFERENCE: dict[str, OfRatio] = {
    "sigmoid": lambda h, s: dpo_loss(h, s.beta, s.label_smoothing),
    "robust": lambda h, s: dpo_loss(h, s.beta, s.label_smoothing),  # and `robust_mean` over the step
    "rdpo": lambda h, s: unbiased_dpo_loss(h, s.beta, s.label_smoothing),
    "ipo": lambda h, s: ipo_loss(h, s.beta),
    "hinge": lambda h, s: hinge_loss(h, s.beta),
    "exo_pair": lambda h, s: exo_loss(h, s.beta, s.label_smoothing),
    "discopop": lambda h, s: discopop_loss(h, s.beta, s.discopop_tau),
}
_OF_TOKEN_MEANS: dict[str, OfRatio] = {
    "sigmoid_norm": lambda h, s: dpo_loss(h, s.beta_norm, s.label_smoothing),  # 2411.15124, length-normalised DPO
    "ipo_norm": lambda h, s: ipo_loss(h, s.beta),
}
_OF_ANSWERS: dict[str, OfAnswers] = {
    "nca_pair": lambda chosen, rejected, s: nca_loss(chosen, rejected, s.beta),
    "bco_pair": lambda chosen, rejected, s: bco_loss(chosen, rejected, s.beta),
    "sppo_hard": lambda chosen, rejected, s: sppo_loss(chosen, rejected, s.beta),
    "apo_zero": lambda chosen, rejected, s: apo_zero_loss(chosen, rejected, s.beta),
    "apo_down": lambda chosen, rejected, s: apo_down_loss(chosen, rejected, s.beta),
}
_SORTED = ("aot", "aot_unpaired")
LOSS_KINDS = (*_OF_DIFFERENCE, *_OF_TOKEN_MEANS, *_OF_ANSWERS, *_SORTED)
STEP_WIDE = ("robust", *_SORTED)
"""Losses whose value for a pair depends on the other pairs of the optimizer step."""


def pair_losses(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """The loss of every decisive pair, (pairs,). Raises ValueError for a kind or divergence that is not known.

    A divergence other than reverse_kl is for losses of a difference alone: their normalising constant does not cancel
    otherwise.
    """
    kind = settings.kind
    if kind in _SORTED:
        return _sorted_losses(pairs, settings)
    if kind in _OF_ANSWERS:
        return _OF_ANSWERS[kind](pairs.chosen_ratio, pairs.rejected_ratio, settings)
    chosen = divergence_score(pairs.chosen_ratio, settings.divergence, settings.alpha)
    rejected = divergence_score(pairs.rejected_ratio, settings.divergence, settings.alpha)
    if kind in _OF_TOKEN_MEANS:
        means = chosen / pairs.chosen_tokens - rejected / pairs.rejected_tokens
        return _OF_TOKEN_MEANS[kind](means, settings)
    if kind in _OF_DIFFERENCE:
        return _OF_DIFFERENCE[kind](chosen - rejected, settings)
    raise ValueError(f"unknown loss {kind!r}")


def _sorted_losses(pairs: PairLogprobs, settings: LossSettings) -> Tensor:
    """AOT: the step's sorted log-ratios against sorted ones of the reference, or of the rejected (2406.05882, alg. 1, 2)."""
    if settings.kind == "aot":
        upper = pairs.chosen - pairs.rejected
        lower = pairs.chosen_reference - pairs.rejected_reference
    else:
        upper, lower = pairs.chosen_ratio, pairs.rejected_ratio
    return dpo_loss(upper.sort().values - lower.sort().values, settings.beta, settings.label_smoothing)

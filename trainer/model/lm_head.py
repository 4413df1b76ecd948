"""From hidden states to log-probabilities of tokens, some tokens at a time: logits are never held for a whole batch.

A frozen head's backward pass needs no logits: what each token's log-probability gives its hidden state is known in the forward
pass. Only where the head itself is trained are they computed again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BYTES_PER_LOGIT = (
    18  # in the backward pass: bfloat16 logits, float32 copy, that capped, its gradient, and that in bfloat16
)


@dataclass(frozen=True)
class Scaling:
    """What a model does to its lm_head's output: times `factor`, then cap * tanh(logits / cap)."""

    factor: float = 1.0
    cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """Scaled logits, of the same shape."""
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def read_scaling(config: Any) -> Scaling:
    """The scaling of a model: `final_logit_softcapping` (Gemma 2), `logit_scale` (Cohere), `logits_scaling` (Granite)."""
    factor = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Scaling(factor, None if cap is None else float(cap))


def compute_logits(head: Any, scaling: Scaling, hidden: Tensor, temperature: float) -> Tensor:
    """(tokens, vocabulary) float32 of hidden states (tokens, width), scaled and over the temperature."""
    logits = scaling.apply(head(hidden).float())
    return logits / temperature if temperature != 1 else logits


class TargetLogprob(torch.autograd.Function):
    """log softmax(logits)[target], (tokens,), of logits (tokens, vocabulary) and targets (tokens,).

    Torch's log_softmax adds up a row in a few float32 sums: 1e-5 off at a vocabulary of 49,152, gradients too. logsumexp adds
    in a tree: some 1e-6.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        total = torch.logsumexp(logits, -1)
        ctx.save_for_backward(logits, targets, total)
        return logits.gather(-1, targets[:, None]).squeeze(-1) - total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """Of logits: gradient * ([token is the target] - p(token))."""
        (gradient,) = gradients
        logits, targets, total = ctx.saved_tensors
        made = (logits - total[:, None]).exp_().mul_(-gradient[:, None])
        return made.scatter_add_(-1, targets[:, None], gradient[:, None]), None


class FrozenHeadLogprob(torch.autograd.Function):
    """log p(target), (tokens,), of hidden states (tokens, width) under a head that takes no gradient.

    d log p(target) / d hidden = ([token is the target] - p(token)) x slope of the scaling x W: (tokens, width), kept in place of
    the logits. Large tensors are changed in place, and no more often than is needed.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Any, scaling: Scaling, temperature: float, rows: int
    ) -> Tensor:
        scored, directions = [], []
        for part, expected in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True):
            logits = compute_logits(head, scaling, part, temperature)
            total = torch.logsumexp(logits, -1)
            scored.append(logits.gather(-1, expected[:, None]).squeeze(-1) - total)
            away = (logits - total[:, None]).exp_()
            away.scatter_add_(-1, expected[:, None], torch.full_like(away[:, :1], -1.0))
            if scaling.cap is not None:
                away.mul_(1 - (logits * (temperature / scaling.cap)).square_())
            directions.append(away.to(head.weight.dtype) @ head.weight)
        ctx.save_for_backward(torch.cat(directions))
        ctx.factor, ctx.dtype = -scaling.factor / temperature, hidden.dtype
        return torch.cat(scored)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        """Of hidden: gradient * direction."""
        (direction,) = ctx.saved_tensors
        return (gradients[0][:, None] * ctx.factor * direction).to(ctx.dtype), None, None, None, None, None


def head_logprobs(
    head: Any, scaling: Scaling, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, logits_mb: int = 128
) -> Tensor:
    """log p(target) of each hidden state, (tokens,) float32, differentiable in hidden and in the head's weights.

    hidden: (tokens, width); targets: (tokens,). Logits are computed for as many tokens at a time as fit logits_mb.
    """

    def score(part: Tensor, expected: Tensor) -> Tensor:
        scored: Tensor = TargetLogprob.apply(compute_logits(head, scaling, part, temperature), expected)  # type: ignore[no-untyped-call]
        return scored

    rows = max(1, (logits_mb << 20) // (BYTES_PER_LOGIT * int(head.weight.shape[0])))
    is_training = torch.is_grad_enabled()
    if is_training and len(hidden) and not any(each.requires_grad for each in head.parameters()):
        made: Tensor = FrozenHeadLogprob.apply(hidden, targets, head, scaling, temperature, rows)  # type: ignore[no-untyped-call]
        return made
    scored = [
        checkpoint(score, part, expected, use_reentrant=False, preserve_rng_state=False)
        if is_training
        else score(part, expected)
        for part, expected in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(scored) if scored else hidden.new_zeros(0, dtype=torch.float32)

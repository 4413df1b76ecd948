"""A DPO round: moves the policy adapter towards the chosen answers, away from the rejected ones.

The reference is the base (adapter off); its log-probabilities are computed once for all pairs. Ties say nothing about a
direction: they are counted and left to the reward model. Does not decide whether the result may be served.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.isolation import NotFinite, run_isolated
from trainer.math.losses import dpo_loss, ipo_loss, weighted_mean
from trainer.model.encoding import EncodedPair, Row, encode_pairs
from trainer.model.logprobs import answer_logprobs
from trainer.model.stack import PolicyStack
from trainer.text.rejected import Reject, log_rejected

if TYPE_CHECKING:
    from trainer.text.pairs import Pair

WARMUP_SHARE = 0.1
PART = "round"


class NothingToTrainOn(ValueError):
    """No decisive pair was given that can be trained on."""


@dataclass(frozen=True)
class Preference:
    """An encoded decisive pair. reference: log pi_ref(chosen) - log pi_ref(rejected)."""

    event_id: str
    chosen: Row
    rejected: Row
    weight: float
    reference: float


def is_decisive(pair: "Pair") -> bool:
    """Whether one of the answers was preferred, with any weight."""
    return pair.preferred in ("first", "second") and pair.weight > 0


def encode_preferences(stack: PolicyStack, pairs: Sequence["Pair"], reject: Reject = log_rejected) -> list[Preference]:
    """Tokens and cached reference log-probabilities of the decisive pairs; what has none is rejected."""
    preferences: list[Preference] = []

    def refer(batch: Sequence[EncodedPair]) -> None:
        ordered = [(e.first, e.second) if e.pair.preferred == "first" else (e.second, e.first) for e in batch]
        sums = stack.answer_logprobs([row for rows in ordered for row in rows], None)[0]
        if not torch.isfinite(sums).all():
            raise NotFinite("a reference log-probability is not finite")
        for each, (chosen, rejected), reference in zip(batch, ordered, (sums[0::2] - sums[1::2]).tolist(), strict=True):
            preferences.append(Preference(each.pair.event_id, chosen, rejected, each.pair.weight, reference))

    encoded = encode_pairs(stack, [pair for pair in pairs if is_decisive(pair)], PART, reject)
    run_isolated(encoded, refer, lambda one, error: reject_if_sound(stack, one.pair.event_id, error, reject))
    return preferences


def reject_if_sound(stack: PolicyStack, event_id: str, error: Exception, reject: Reject) -> None:
    """Reject a pair that failed alone. Raises its error if the model itself is broken."""
    if not stack.is_sound("policy"):
        raise error
    reject(event_id, PART, error)


def scale_lr(step: int, num_steps: int) -> float:
    """Warm-up over a tenth of the steps, then linear decay: a constant rate garbles a small model's facts."""
    warmup = max(1, math.ceil(WARMUP_SHARE * num_steps))
    return (step + 1) / warmup if step < warmup else (num_steps - step) / max(1, num_steps - warmup)


def split_batches(preferences: Sequence[Preference], batch_size: int, rng: random.Random) -> list[list[Preference]]:
    """All preferences once, in random order; the last batch may be short."""
    order = rng.sample(list(preferences), len(preferences))
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def compute_log_ratios(stack: PolicyStack, batch: Sequence[Preference]) -> tuple[Tensor, Tensor]:
    """h of every pair, and the chosen answers' mean log-probability a token, both (pairs,)."""
    rows = [p.chosen for p in batch] + [p.rejected for p in batch]
    sums, counts = answer_logprobs(stack.causal_lm, stack.collate(rows))
    chosen, rejected = sums.chunk(2)
    reference = torch.tensor([p.reference for p in batch], device=sums.device)
    return chosen - rejected - reference, chosen / counts[: len(batch)]


class _Steps:
    """The optimizer's steps of a round, one a batch; history holds the figures of each."""

    def __init__(
        self,
        stack: PolicyStack,
        parameters: list[torch.nn.Parameter],
        lr: float,
        num_steps: int,
        compute_loss: Callable[[Tensor], Tensor],
        nll_weight: float,
    ) -> None:
        self._stack, self._parameters = stack, parameters
        self._compute_loss, self._nll_weight = compute_loss, nll_weight
        self._optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: scale_lr(min(step, num_steps), num_steps)
        )
        self.history: list[dict[str, float]] = []

    def take(self, batch: Sequence[Preference]) -> None:
        """Learn from a batch. Whatever it raises, nothing was learnt."""
        log_ratio, chosen_logprob = compute_log_ratios(self._stack, batch)
        each = self._compute_loss(log_ratio) - self._nll_weight * chosen_logprob
        loss = weighted_mean(each, torch.tensor([p.weight for p in batch], device=each.device))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        if not (torch.isfinite(loss) and torch.isfinite(norm)):
            raise NotFinite(f"the loss is {loss.item()}, its gradient's norm {norm.item()}")
        self._optimizer.step()
        self._schedule.step()
        self.history.append(
            {
                "loss": loss.item(),
                "log_ratio": log_ratio.mean().item(),
                "accuracy": (log_ratio > 0).float().mean().item(),
                "chosen_logprob": chosen_logprob.mean().item(),
                "grad_norm": norm.item(),
            }
        )


def run_dpo(
    stack: PolicyStack,
    pairs: Sequence["Pair"],
    *,
    beta: float,
    lr: float,
    epochs: int,
    batch_size: int,
    label_smoothing: float,
    rng: random.Random,
    progress: Callable[[float, dict[str, float]], None] = lambda share, metrics: None,
    loss: str = "sigmoid",
    nll_weight: float = 0.2,
    reject: Reject = log_rejected,
) -> dict[str, float]:
    """Trains adapter "policy" from where it stands; `loss` is "sigmoid" (DPO, cDPO) or "ipo".

    nll_weight adds the chosen answers' negative log-likelihood a token (Pang et al. 2024, eq. 4): without it the mass taken from
    rejected answers goes to garble, and a small model loses its facts.
    progress(share done, metrics of the step) is called after each step and may raise to stop the round. Returns the metrics
    of the last epoch. Raises NothingToTrainOn if every pair is a tie, or rejected.
    """
    if loss not in ("sigmoid", "ipo"):
        raise ValueError(f"unknown loss {loss!r}")
    preferences = encode_preferences(stack, pairs, reject)
    num_steps = epochs * math.ceil(len(preferences) / batch_size)

    def compute_loss(log_ratio: Tensor) -> Tensor:
        return dpo_loss(log_ratio, beta, label_smoothing) if loss == "sigmoid" else ipo_loss(log_ratio, beta)

    with stack.training("policy") as parameters:
        steps = _Steps(stack, parameters, lr, num_steps, compute_loss, nll_weight)
        for _ in range(epochs if preferences else 0):
            for batch in split_batches(preferences, batch_size, rng):
                run_isolated(batch, steps.take, lambda one, error: reject_if_sound(stack, one.event_id, error, reject))
                if steps.history:
                    progress(min(1.0, len(steps.history) / num_steps), steps.history[-1])
    if not steps.history:
        raise NothingToTrainOn(f"{len(pairs)} pairs, none of them decisive and usable")
    last = steps.history[-(num_steps // epochs) :]
    metrics = {name: sum(step[name] for step in last) / len(last) for name in last[0]}
    num_ties = sum(not is_decisive(pair) for pair in pairs)
    return {**metrics, "num_pairs": float(len(preferences)), "num_ties": float(num_ties)}

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

from trainer.logprobs import answer_logprobs
from trainer.losses import dpo_loss, ipo_loss, weighted_mean
from trainer.models import PolicyStack

if TYPE_CHECKING:
    from trainer.dataset import Pair

WARMUP_SHARE = 0.1
Row = tuple[list[int], int]


class NothingToTrainOn(ValueError):
    """No decisive pair was given."""


@dataclass(frozen=True)
class Preference:
    """An encoded decisive pair. reference: log pi_ref(chosen) - log pi_ref(rejected)."""

    chosen: Row
    rejected: Row
    weight: float
    reference: float


def order_answers(pair: "Pair") -> tuple[str, str] | None:
    """(chosen, rejected); None if the pair is not decisive."""
    if pair.preferred == "first":
        return pair.first, pair.second
    return (pair.second, pair.first) if pair.preferred == "second" else None


def encode_preferences(stack: PolicyStack, pairs: Sequence["Pair"]) -> list[Preference]:
    """Tokens and cached reference log-probabilities of the decisive pairs."""
    decisive = [(pair, answers) for pair in pairs if (answers := order_answers(pair)) and pair.weight > 0]
    rows = [stack.encode(pair.messages, answer) for pair, answers in decisive for answer in answers]
    sums = stack.answer_logprobs(rows, None)[0].tolist() if rows else []
    return [
        Preference(rows[2 * i], rows[2 * i + 1], pair.weight, sums[2 * i] - sums[2 * i + 1])
        for i, (pair, _) in enumerate(decisive)
    ]


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
) -> dict[str, float]:
    """Trains adapter "policy" from where it stands; `loss` is "sigmoid" (DPO, cDPO) or "ipo".

    nll_weight adds the chosen answers' negative log-likelihood a token (Pang et al. 2024, eq. 4): without it the mass taken from
    rejected answers goes to garble, and a small model loses its facts.
    progress(share done, metrics of the step) is called after each step and may raise to stop the round. Returns the metrics
    of the last epoch. Raises NothingToTrainOn if every pair is a tie.
    """
    if loss not in ("sigmoid", "ipo"):
        raise ValueError(f"unknown loss {loss!r}")
    preferences = encode_preferences(stack, pairs)
    if not preferences:
        raise NothingToTrainOn(f"{len(pairs)} pairs, none of them decisive")
    num_steps = epochs * math.ceil(len(preferences) / batch_size)
    history: list[dict[str, float]] = []
    with stack.training("policy") as parameters:
        optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: scale_lr(step, num_steps))
        for _ in range(epochs):
            for batch in split_batches(preferences, batch_size, rng):
                log_ratio, chosen_logprob = compute_log_ratios(stack, batch)
                each = dpo_loss(log_ratio, beta, label_smoothing) if loss == "sigmoid" else ipo_loss(log_ratio, beta)
                each = each - nll_weight * chosen_logprob
                step_loss = weighted_mean(each, torch.tensor([p.weight for p in batch], device=each.device))
                optimizer.zero_grad(set_to_none=True)
                step_loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                schedule.step()
                history.append(
                    {
                        "loss": step_loss.item(),
                        "log_ratio": log_ratio.mean().item(),
                        "accuracy": (log_ratio > 0).float().mean().item(),
                        "chosen_logprob": chosen_logprob.mean().item(),
                        "grad_norm": norm.item(),
                    }
                )
                progress(len(history) / num_steps, history[-1])
    last = history[-num_steps // epochs :]
    metrics = {name: sum(step[name] for step in last) / len(last) for name in last[0]}
    return {**metrics, "num_pairs": float(len(preferences)), "num_ties": float(len(pairs) - len(preferences))}

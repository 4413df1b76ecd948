"""Which two of a few candidates to ask about, by what a reward model's posterior draws say of them. Pure.

Pairs so chosen teach and must never judge: a model picked them. Candidates that read the same should be left out before.
"""

from __future__ import annotations

import torch
from torch import Tensor


def choose_informative(draws: Tensor) -> tuple[int, int]:
    """The pair whose win probability the draws disagree about most: teaches the reward model.

    draws: (candidates, K), scores under K posterior draws. argmax over i < j of Var_z sigma(r_z(y_i) - r_z(y_j)), as for pure
    exploration in Liu et al. (2024, arXiv 2411.01493); of equal pairs the first in lexical order. Raises ValueError unless there
    are two candidates, two draws and finite scores.
    """
    _check(draws, min_draws=2)
    scores = draws.double()
    # sigma(d) = (1 + tanh(d / 2)) / 2; tanh is odd to the last bit, so that a pair and its mirror image are truly equal
    variances = torch.tanh((scores[:, None] - scores[None]) / 2).var(-1, correction=0) / 4  # (candidates, candidates)
    pairs = [(i, j) for i in range(len(scores)) for j in range(i + 1, len(scores))]
    return max(pairs, key=lambda pair: float(variances[pair]))  # max keeps the first of equals


def choose_telling(draws: Tensor, z: int) -> tuple[int, int]:
    """The best and the worst candidate under one posterior draw, in this order: teaches the policy.

    DRTS: argmax r_z against argmin r_z, z drawn by the caller, 0 <= z < K. draws: as in choose_informative, one draw suffices;
    of equals the first, and never one candidate twice. Raises ValueError.
    """
    _check(draws, min_draws=1)
    if not 0 <= z < draws.shape[1]:
        raise ValueError(f"there are {draws.shape[1]} draws and none is number {z}")
    scores: list[float] = draws[:, z].tolist()
    best = scores.index(max(scores))
    worst = min((i for i in range(len(scores)) if i != best), key=scores.__getitem__)
    return best, worst


def _check(draws: Tensor, *, min_draws: int) -> None:
    if draws.dim() != 2 or draws.shape[0] < 2 or draws.shape[1] < min_draws:
        raise ValueError(f"draws of shape {tuple(draws.shape)} leave no pair to choose")
    if not bool(torch.isfinite(draws).all()):
        raise ValueError("a score is not finite")

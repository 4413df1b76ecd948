"""How often the guardrail of the divergence errs: simulated answers, looked at after each."""

import math

import numpy as np
import numpy.typing as npt

from gateway.rollout.pure.divergence import CLIP_MARGINS, MIN_ANSWERS, DivergenceTally, log_beyond_e, log_within_e

Floats = npt.NDArray[np.float64]
MARGIN = 0.5
NUM_ANSWERS = 400


def draw_unequal(shape: float, mean: float, rollouts: int, rng: np.random.Generator) -> Floats:
    """Gamma divergences in nats a token, very unequal where the shape is small: (rollouts, NUM_ANSWERS)."""
    return rng.gamma(shape, mean / shape, (rollouts, NUM_ANSWERS))


def draw_rare(rollouts: int, rng: np.random.Generator) -> Floats:
    """One answer in eight is eight margins away, the others are just like stable's: the mean is the margin."""
    return np.where(rng.random((rollouts, NUM_ANSWERS)) < 1 / CLIP_MARGINS, CLIP_MARGINS * MARGIN, 0.0)


def find_crossing(values: Floats, *, beyond: bool, alpha: float = 0.05) -> int | None:
    """After how many answers it is proven that the mean is below the margin, or beyond it; None if never. values: (n,)."""
    log_e, line = (log_beyond_e if beyond else log_within_e), -math.log(alpha)
    clipped = np.minimum(values, CLIP_MARGINS * MARGIN)
    totals, squares = clipped.cumsum().tolist(), (clipped**2).cumsum().tolist()
    looks = range(MIN_ANSWERS, len(values) + 1)
    return next((n for n in looks if log_e(DivergenceTally(n, totals[n - 1], squares[n - 1]), MARGIN) >= line), None)


def share_crossed(values: Floats, *, beyond: bool) -> float:
    """The share of rollouts in which that is ever proven: (rollouts, n)."""
    return sum(find_crossing(row, beyond=beyond) is not None for row in values) / len(values)

"""How far each part of a reward model is believed: by what it foresaw, and not by what it learnt by heart.

Pure. Style counts whole; head and adapter by shares that fit the prequential record best.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch

from trainer.learn.reward.prequential import Prequential
from trainer.math.choices import win_probabilities

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
EXPECTED, SPREAD = 0.5, 0.35  # what a share is before anything was foreseen


@dataclass(frozen=True)
class Mix:
    """What head and adapter are multiplied by, 0 to 1."""

    head: float = EXPECTED
    adapter: float = 0.0

    def share(self, part: str) -> float:
        return {"style": 1.0, "head": self.head, "adapter": self.adapter}[part]


def fit_mix(record: Prequential, log_nu: float, has_adapter: bool) -> Mix:
    """The shares under which the record's decisive choices were likeliest, drawn towards a half.

    How a pair was picked does not matter here: given its answers, a choice is as likely as it is.
    """
    rows = [row for row in record.everything if row.is_decisive]
    parts = torch.tensor(
        [[row.parts[name] for name in ("style", "head", "adapter")] for row in rows], dtype=torch.float64
    ).view(-1, 3)
    sign = torch.tensor([1.0 if row.preferred == "first" else -1.0 for row in rows], dtype=torch.float64)

    def measure(mix: Mix) -> float:
        led = sign * (parts @ torch.tensor([1.0, mix.head, mix.adapter], dtype=torch.float64))
        loss = -win_probabilities(led, log_nu).clamp(min=1e-9).log().sum().item()
        strayed = [mix.head - EXPECTED, *([mix.adapter - EXPECTED] if has_adapter else [])]
        return loss + 0.5 * math.fsum((each / SPREAD) ** 2 for each in strayed)

    return min(itertools.starmap(Mix, itertools.product(SHARES, SHARES if has_adapter else (0.0,))), key=measure)

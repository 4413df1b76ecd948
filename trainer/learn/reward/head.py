"""The part of a score that networks on frozen hidden states learn: what style leaves unexplained, and how unsure that is.

Costs no forward of the backbone: hidden states of a sample of choices are kept. The optimizer's moments are kept as well.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.loop import Loop, ParameterGroup
from trainer.learn.reward.reservoir import Key, Reservoir
from trainer.math.choices import RATED, ChoiceFit, Choices, choice_losses
from trainer.model.heads import EpistemicHead, Standardiser

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone
    from trainer.sections.reward import RewardSection


@lru_cache(maxsize=8192)
def bootstrap_weights(event_id: str, num_draws: int) -> tuple[float, ...]:
    """Exponential weights, one a draw, fixed by the event: a replayed pair weighs what it weighed (Rubin 1981)."""
    digest = hashlib.shake_128(event_id.encode()).digest(4 * num_draws)
    draws = [int.from_bytes(digest[4 * draw : 4 * draw + 4], "big") for draw in range(num_draws)]
    return tuple(-math.log((draw + 0.5) / 2**32) for draw in draws)


@dataclass(frozen=True)
class Draw:
    """Places that a step learns from, of all these rows; num_rows have hidden states."""

    places: Tensor
    rows: Choices
    num_rows: int


class HeadPart:
    """The networks, what their input is scaled by, and their optimizer."""

    def __init__(self, backbone: Backbone, settings: RewardSection, seed: int) -> None:
        self._settings, self._seed, self._device = settings, seed, backbone.device
        self.standardiser = Standardiser(2 * backbone.hidden_size, settings.hidden_features, seed).to(backbone.device)
        self.size = self.standardiser.size
        self.network = EpistemicHead(self.size, settings.num_draws, settings.head_width, seed).to(backbone.device)
        self.loop = Loop([ParameterGroup("head", dict(self.network.named_parameters()), settings.head_lr)], None)

    def standardise(self, states: Tensor) -> Tensor:
        """States (answers, 2 width) as they are kept, (answers, size) on the CPU; the first that come fix the scales."""
        self.standardiser.fix(states.to(self._device))
        return self.rescale(states)

    def rescale(self, states: Tensor) -> Tensor:
        """As `standardise`, fixing nothing."""
        scaled: Tensor = self.standardiser(states.to(self._device))
        return scaled.half().float().cpu()  # as precise as they are kept

    def score(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The point (answers,) and what each draw adds to it (answers, K), on the CPU. hidden: (answers, size)."""
        with torch.no_grad():
            point, doubts = self.network(hidden.to(self._device))
        return point.cpu(), doubts.cpu()

    def train(self, reservoir: Reservoir, rows: Choices, fit: ChoiceFit, keys: Sequence[Key]) -> float:
        """Steps on rows with hidden states, half of them these; returns the mean loss of the point. rows: all of the reservoir."""
        everything, current = reservoir.places_with_hidden(), reservoir.find(keys)
        current = current[reservoir.slots[current] >= 0]
        if not len(current):
            return 0.0
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * self.loop.step_number)
        half = min(self._settings.head_batch_size // 2, len(everything))
        losses = []
        for _ in range(self._settings.head_steps):
            drawn = [pool[torch.randint(len(pool), (half,), generator=generator)] for pool in (current, everything)]
            places = torch.cat(drawn)
            loss = partial(self._compute_loss, Draw(places, rows, len(everything)), reservoir, fit)
            figures = self.loop.step([loss])
            losses.append(figures["loss_point"])
        return sum(losses) / max(1, len(losses))

    def _compute_loss(self, draw: Draw, reservoir: Reservoir, fit: ChoiceFit) -> tuple[Tensor, dict[str, float]]:
        """Weighted loss of the point and of every draw, each against its prior; style's part is given."""
        device, num_draws = self._device, self._settings.num_draws
        rows = draw.rows.pick(draw.places)
        style = (rows.features @ fit.weights).to(device)
        rows = rows.to_device(device)
        point, doubts = self.network(reservoir.hidden_of(draw.places).to(device))  # (rows, 2), (rows, 2, draws)
        is_pair = (rows.kinds != RATED).float()
        led = point[:, 0] - is_pair * point[:, 1]
        doubted = doubts[:, 0] - is_pair[:, None] * doubts[:, 1]

        def measure(differences: Tensor) -> Tensor:
            return choice_losses(
                differences, rows, first_place=point.new_tensor(fit.first_place), log_nu=point.new_tensor(fit.log_nu),
                rated_intercept=point.new_tensor(fit.rated_intercept), smoothing=self._settings.label_smoothing,
            )  # fmt: skip

        boots = [bootstrap_weights(reservoir.said[place].key.event_id, num_draws) for place in draw.places.tolist()]
        total = rows.weights.sum().clamp(min=1e-6)
        centred = self._settings.centre_weight * is_pair * point.sum(1).square()
        of_point = (rows.weights * (measure(style + led) + centred)).sum() / total
        draw_losses = measure((style + led.detach())[:, None] + doubted)
        of_draws = (rows.weights[:, None] * torch.tensor(boots, device=device) * draw_losses).sum() / total
        loss = of_point + of_draws + self.network.penalty().sum() / draw.num_rows
        return loss, {"loss_point": of_point.item()}

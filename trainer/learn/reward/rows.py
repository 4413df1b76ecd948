"""Pairs and rated answers as rows of the reservoir. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.reward.outcomes import name_group
from trainer.learn.reward.reservoir import Row
from trainer.math.choices import FIRST, RATED, SECOND, TIE

if TYPE_CHECKING:
    from trainer.sections.reward import RewardSection
    from trainer.text.pairs import Pair, Rated

KINDS = {"first": FIRST, "second": SECOND, "tie": TIE, "both_bad": TIE}


@dataclass(frozen=True)
class RowMaker:
    """features: of style, of each answer by event id; states: (answers, size), of those whose hidden states are known."""

    settings: RewardSection
    features: Mapping[str, Sequence[Sequence[float]]]
    states: Mapping[str, Tensor]

    def of_pair(self, pair: Pair, weight: float) -> Row:
        """A choice; the stronger it was, the larger the lead that it asks for."""
        first, second = self.features[pair.event_id]
        return Row(
            event_id=pair.event_id,
            user=pair.user,
            kind=KINDS[pair.preferred],
            first=first,
            second=second,
            hidden=self.states.get(pair.event_id),
            weight=weight,
            margin=self.settings.margin * (pair.strength or 0.0),
        )

    def of_rated(self, rated: Rated) -> Row:
        """A judged answer, which counts rated_weight of a choice."""
        hidden = self.states.get(rated.event_id)
        return Row(
            event_id=rated.event_id,
            user=name_group(rated),
            kind=RATED,
            first=self.features[rated.event_id][0],
            second=None,
            hidden=None if hidden is None else torch.cat([hidden, torch.zeros_like(hidden)]),
            weight=rated.weight * self.settings.rated_weight,
            value=rated.value,
        )

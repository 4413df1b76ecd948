"""Pairs and rated answers as rows of the reservoir. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.reward.outcomes import name_group
from trainer.learn.reward.reservoir import Key, Row
from trainer.math.choices import FIRST, RATED, SECOND, TIE

if TYPE_CHECKING:
    from trainer.sections.reward import RewardSection
    from trainer.text.pairs import Pair, Rated

KINDS = {"first": FIRST, "second": SECOND, "tie": TIE, "both_bad": TIE}


def key_pair(pair: Pair) -> Key:
    return Key(pair.event_id)


def key_rated(rated: Rated) -> Key:
    return Key(rated.event_id, rated.kind)


@dataclass(frozen=True)
class RowMaker:
    """features: of style, of each answer of a row; states: (answers, size), of those whose hidden states are known."""

    settings: RewardSection
    features: Mapping[Key, Sequence[Sequence[float]]]
    states: Mapping[Key, Tensor]

    def of_pair(self, pair: Pair) -> Row:
        """A choice or an edit; the stronger it was, the larger the lead that it asks for."""
        key = key_pair(pair)
        first, second = self.features[key]
        return Row(
            key=key,
            kind=KINDS[pair.preferred],
            first=first,
            second=second,
            hidden=self.states.get(key),
            user=pair.user,
            app=pair.app,
            at=pair.chosen_at,
            weight=pair.weight,
            margin=self.settings.margin * (pair.strength or 0.0),
        )

    def of_rated(self, rated: Rated) -> Row:
        """A judged answer, which counts rated_weight of a choice."""
        key = key_rated(rated)
        hidden = self.states.get(key)
        return Row(
            key=key,
            kind=RATED,
            first=self.features[key][0],
            second=None,
            hidden=None if hidden is None else torch.cat([hidden, torch.zeros_like(hidden)]),
            group=name_group(rated),
            user=rated.user,
            app=rated.app,
            at=rated.created_at,
            weight=rated.weight * self.settings.rated_weight,
            value=rated.value,
        )

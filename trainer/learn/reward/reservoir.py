"""A sample of all choices ever learnt from, as style features and frozen hidden states: what the reward model is fitted to anew.

Memory is bounded: a row beyond the capacity takes a random one's place (reservoir sampling, Vitter 1985), so that the sample is
uniform over history; hidden states have a smaller capacity of their own. The same rows in the same order give the same sample.
What a row's weight hangs on is kept with it, and the weights themselves are made anew for every fit.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.math.choices import RATED, Choices
from trainer.math.ratings import compare_with_usual
from trainer.math.weights import WeightedRow

SLICE = "slice:"  # begins the group of an outcome
OLD_RATED = "rated"  # the part of rated rows in states from before parts were kept


class Key(NamedTuple):
    """Names a row. part: which thing that its event says, "" for a pair, else the kind of rating: a signal may say several."""

    event_id: str
    part: str = ""


@dataclass(frozen=True)
class Row:
    """One pair, or one rated answer (second is None).

    group: whose usual rating a rating is compared with, its person or, of an outcome, its slice. first, second: features of style.
    hidden: (2, size) standardised frozen states, or None; value: of a rating, 0 to 1. user, app, at (epoch seconds) and weight (the
    row's own) are what it is weighed by.
    """

    key: Key
    kind: int
    first: Sequence[float]
    second: Sequence[float] | None
    hidden: Tensor | None
    group: str = ""
    user: str = ""
    app: str = ""
    at: float = 0.0
    weight: float = 1.0
    margin: float = 0.0
    value: float = 0.0


@dataclass(frozen=True)
class Said:
    """What is kept of a row beside its tensors."""

    key: Key
    group: str
    user: str
    app: str
    at: float


class Reservoir:
    """Rows in tensors. capacity: of rows; hidden_capacity: of rows with hidden states."""

    def __init__(self, num_features: int, hidden_size: int, capacity: int, hidden_capacity: int, seed: int) -> None:
        self.capacity, self.hidden_capacity, self._seed = capacity, hidden_capacity, seed
        self.said: list[Said] = []
        self.features = torch.zeros(0, 2, num_features)
        self.kinds = torch.zeros(0, dtype=torch.long)
        self.numbers = torch.zeros(0, 3)  # its own weight, margin, value
        self.slots = torch.zeros(0, dtype=torch.long)  # row of `hidden`, -1 for none
        self.hidden = torch.zeros(0, 2, hidden_size, dtype=torch.float16)
        self.num_hidden = self.num_seen = self.num_hidden_seen = 0  # tensors are longer than what they hold
        self._places: dict[Key, int] = {}

    def __len__(self) -> int:
        return len(self.said)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    @property
    def event_ids(self) -> list[str]:
        """Of every row, in order; an event's that said several things as often."""
        return [row.key.event_id for row in self.said]

    # Rows

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows in; one that is there already is weighed by what is known of it now, and gets hidden states if it has none."""
        for row in rows:
            place = self._places.get(row.key)
            if place is None:
                place = self._find_place()
                if place is None:
                    continue
                self._put(place, row)
            self.said[place] = _describe(row)
            self.numbers[place, 0] = row.weight
            if row.hidden is not None and self.slots[place] < 0:
                self._put_hidden(place, row.hidden)

    def wants_hidden(self, key: Key) -> bool:
        """Whether the row is not there with hidden states."""
        place = self._places.get(key)
        return place is None or bool(self.slots[place] < 0)

    def drop(self, event_ids: Iterable[str]) -> None:
        """Forget all that these events said: rejected ones, or those of a person who asked for it."""
        gone = set(event_ids)
        kept = [place for place, event_id in enumerate(self.event_ids) if event_id not in gone]
        if len(kept) < len(self):
            self._keep(torch.tensor(kept, dtype=torch.long))

    def _find_place(self) -> int | None:
        self.num_seen += 1
        if len(self) < self.capacity:
            return self._grow()
        place = random.Random(f"{self._seed}-row-{self.num_seen}").randrange(self.num_seen)
        return place if place < self.capacity else None

    def _grow(self) -> int:
        place = len(self)
        if place >= len(self.kinds):
            more = max(64, len(self.kinds) // 4)
            self.features = torch.cat([self.features, self.features.new_zeros(more, *self.features.shape[1:])])
            self.kinds = torch.cat([self.kinds, self.kinds.new_zeros(more)])
            self.numbers = torch.cat([self.numbers, self.numbers.new_zeros(more, 3)])
            self.slots = torch.cat([self.slots, self.slots.new_full((more,), -1)])
        return place

    def _put(self, place: int, row: Row) -> None:
        if place == len(self):
            self.said.append(_describe(row))
        else:
            del self._places[self.said[place].key]
        if self.slots[place] >= 0:
            self._free(int(self.slots[place]))
        self._places[row.key] = place
        self.features[place, 0] = torch.tensor(row.first)
        self.features[place, 1] = 0.0 if row.second is None else torch.tensor(row.second)
        self.kinds[place], self.slots[place] = row.kind, -1
        self.numbers[place] = torch.tensor([row.weight, row.margin, row.value])

    def _put_hidden(self, place: int, hidden: Tensor) -> None:
        self.num_hidden_seen += 1
        slot = self.num_hidden
        if slot < self.hidden_capacity:
            if slot == len(self.hidden):
                more = min(max(64, slot // 4), self.hidden_capacity - slot)
                self.hidden = torch.cat([self.hidden, self.hidden.new_zeros(more, *self.hidden.shape[1:])])
            self.num_hidden += 1
        else:
            slot = random.Random(f"{self._seed}-hidden-{self.num_hidden_seen}").randrange(self.num_hidden_seen)
            if slot >= self.num_hidden:
                return
            self.slots[self.slots == slot] = -1
        self.hidden[slot] = hidden.to(self.hidden)
        self.slots[place] = slot

    def _free(self, slot: int) -> None:
        """Close the gap that a row without its hidden states leaves."""
        self.num_hidden -= 1
        self.hidden[slot] = self.hidden[self.num_hidden]
        self.slots[self.slots == slot] = -1
        self.slots[self.slots == self.num_hidden] = slot

    def _keep(self, places: Tensor) -> None:
        slots = self.slots[places]
        has = slots >= 0
        self.hidden = self.hidden[slots[has]].clone()
        self.num_hidden = len(self.hidden)
        slots[has] = torch.arange(int(has.sum()))
        self.features, self.kinds, self.numbers = self.features[places], self.kinds[places], self.numbers[places]
        self.slots = slots
        self.said = [self.said[place] for place in places.tolist()]
        self._places = _find_places(self.said)

    # What is learnt from

    def describe(self, now: float) -> list[WeightedRow]:
        """What each row is weighed by."""
        own = self.numbers[: len(self), 0].tolist()
        return [
            WeightedRow(row.user, row.app, max(0.0, now - row.at), weight)
            for row, weight in zip(self.said, own, strict=True)
        ]

    def choices(self, weights: Tensor | None = None) -> Choices:
        """All rows, for the fit of the features; ratings calibrated per person. weights: (rows,), None: each row's own."""
        n = len(self)
        first, second = self.features[:n].unbind(1)
        own, margins, values = self.numbers[:n].unbind(1)
        targets = self._calibrate(values)
        return Choices(first - second, self.kinds[:n], targets, margins, own if weights is None else weights)

    def _calibrate(self, values: Tensor) -> Tensor:
        rated = (self.kinds[: len(self)] == RATED).nonzero().squeeze(1)
        if not len(rated):
            return values
        targets = values.clone()
        pairs = [(self.said[place].group, float(values[place])) for place in rated.tolist()]
        targets[rated] = torch.tensor(compare_with_usual(pairs))
        return targets

    def places_with_hidden(self) -> Tensor:
        return (self.slots[: len(self)] >= 0).nonzero().squeeze(1)

    def find(self, keys: Iterable[Key]) -> Tensor:
        """Places of those of these rows that are here."""
        return torch.tensor([self._places[key] for key in keys if key in self._places], dtype=torch.long)

    def hidden_of(self, places: Tensor) -> Tensor:
        """(places, 2, size) float32 of rows that have hidden states."""
        return self.hidden[self.slots[places]].float()

    # Kept on disk

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors, and the rest as JSON takes it."""
        n = len(self)
        tensors = {
            "features": self.features[:n].contiguous(),
            "kinds": self.kinds[:n].contiguous(),
            "numbers": self.numbers[:n].contiguous(),
            "slots": self.slots[:n].contiguous(),
            "hidden": self.hidden[: self.num_hidden].contiguous(),
        }
        kept = {
            "ids": self.event_ids,
            "parts": [row.key.part for row in self.said],
            "groups": [row.group for row in self.said],
            "users": [row.user for row in self.said],
            "apps": [row.app for row in self.said],
            "times": [row.at for row in self.said],
        }
        return tensors, {**kept, "num_seen": self.num_seen, "num_hidden_seen": self.num_hidden_seen}

    def restore(self, tensors: dict[str, Tensor], rest: dict[str, Any], now: float) -> None:
        """Raises KeyError or ValueError, with nothing changed, for what does not fit. now: when rows came of which nothing says it."""
        named = {name: tensors[name] for name in ("features", "kinds", "numbers", "slots", "hidden")}
        seen = int(rest["num_seen"]), int(rest["num_hidden_seen"])
        fits = (
            named["features"].shape[1:] == self.features.shape[1:]
            and named["hidden"].shape[1:] == self.hidden.shape[1:]
        )
        if "parts" not in rest:
            named["numbers"], rest = _read_old(named["kinds"], named["numbers"], rest, now)
        columns = [rest[name] for name in ("ids", "parts", "groups", "users", "apps", "times")]
        lengths = {*map(len, columns), *(len(named[name]) for name in ("features", "kinds", "numbers", "slots"))}
        if not fits or len(lengths) != 1:
            raise ValueError("the rows have other features or hidden states than this release")
        said = [
            Said(Key(str(event_id), str(part)), str(group), str(user), str(app), float(at))
            for event_id, part, group, user, app, at in zip(*columns, strict=True)
        ]
        for name, tensor in named.items():
            setattr(self, name, tensor.clone())
        self.said, self._places = said, _find_places(said)
        self.num_seen, self.num_hidden_seen = seen
        self.num_hidden = len(self.hidden)


def _describe(row: Row) -> Said:
    return Said(row.key, row.group, row.user, row.app, row.at)


def _find_places(said: Sequence[Said]) -> dict[Key, int]:
    return {row.key: place for place, row in enumerate(said)}


def _read_old(kinds: Tensor, numbers: Tensor, rest: dict[str, Any], now: float) -> tuple[Tensor, dict[str, Any]]:
    """Numbers and the rest of a state that holds weights as they were when a row was learnt, and of whom it was in one column.

    Every choice's own weight was 1; a rating's stands there.
    """
    groups, is_rated = [str(each) for each in rest["users"]], kinds == RATED
    numbers = numbers.clone()
    numbers[~is_rated, 0] = 1.0
    return numbers, {
        **rest,
        "parts": [OLD_RATED if rated else "" for rated in is_rated.tolist()],
        "groups": groups,
        "users": ["" if group.startswith(SLICE) else group for group in groups],
        "apps": [""] * len(groups),
        "times": [now] * len(groups),
    }

"""A sample of all choices ever learnt from, as style features and frozen hidden states: what the reward model is fitted to anew.

Memory is bounded: a row beyond the capacity takes a random one's place (reservoir sampling, Vitter 1985), so that the sample is
uniform over history; hidden states have a smaller capacity of their own. The same rows in the same order give the same sample.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trainer.math.choices import RATED, Choices
from trainer.math.ratings import compare_with_usual


@dataclass(frozen=True)
class Row:
    """One choice, or one rated answer (second is None).

    user: whose usual rating a rating is compared with; of an outcome, its slice. first, second: features of style.
    hidden: (2, size) standardised frozen states, or None; value: of a rating, 0 to 1.
    """

    event_id: str
    user: str
    kind: int
    first: Sequence[float]
    second: Sequence[float] | None
    hidden: Tensor | None
    weight: float = 1.0
    margin: float = 0.0
    value: float = 0.0


class Reservoir:
    """Rows in tensors. capacity: of rows; hidden_capacity: of rows with hidden states."""

    def __init__(self, num_features: int, hidden_size: int, capacity: int, hidden_capacity: int, seed: int) -> None:
        self.capacity, self.hidden_capacity, self._seed = capacity, hidden_capacity, seed
        self.ids: list[str] = []
        self.users: list[str] = []
        self.features = torch.zeros(0, 2, num_features)
        self.kinds = torch.zeros(0, dtype=torch.long)
        self.numbers = torch.zeros(0, 3)  # weight, margin, value
        self.slots = torch.zeros(0, dtype=torch.long)  # row of `hidden`, -1 for none
        self.hidden = torch.zeros(0, 2, hidden_size, dtype=torch.float16)
        self.num_hidden = self.num_seen = self.num_hidden_seen = 0  # tensors are longer than what they hold
        self._places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, event_id: object) -> bool:
        return event_id in self._places

    # Rows

    def add(self, rows: Iterable[Row]) -> None:
        """Take rows in; one that is there already gets the new weight, and hidden states if it has none."""
        for row in rows:
            place = self._places.get(row.event_id)
            if place is None:
                place = self._find_place()
                if place is None:
                    continue
                self._put(place, row)
            self.numbers[place, 0] = row.weight
            if row.hidden is not None and self.slots[place] < 0:
                self._put_hidden(place, row.hidden)

    def wants_hidden(self, event_id: str) -> bool:
        """Whether the row is not there with hidden states."""
        place = self._places.get(event_id)
        return place is None or bool(self.slots[place] < 0)

    def drop(self, event_ids: Iterable[str]) -> None:
        """Forget rows: rejected ones, or those of a person who asked for it."""
        gone = {self._places[event_id] for event_id in event_ids if event_id in self._places}
        if gone:
            kept = torch.tensor([place for place in range(len(self)) if place not in gone], dtype=torch.long)
            self._keep(kept)

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
        self.ids.append("")
        self.users.append("")
        return place

    def _put(self, place: int, row: Row) -> None:
        if self.ids[place]:
            del self._places[self.ids[place]]
        if self.slots[place] >= 0:
            self._free(int(self.slots[place]))
        self.ids[place], self.users[place] = row.event_id, row.user
        self._places[row.event_id] = place
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
        self.ids, self.users = [self.ids[i] for i in places], [self.users[i] for i in places]
        self._places = {event_id: place for place, event_id in enumerate(self.ids)}

    # What is learnt from

    def choices(self) -> Choices:
        """All rows, for the fit of the features; ratings calibrated per person."""
        n = len(self)
        first, second = self.features[:n].unbind(1)
        weights, margins, values = self.numbers[:n].unbind(1)
        return Choices(first - second, self.kinds[:n], self._calibrate(values), margins, weights)

    def _calibrate(self, values: Tensor) -> Tensor:
        rated = (self.kinds[: len(self)] == RATED).nonzero().squeeze(1)
        if not len(rated):
            return values
        targets = values.clone()
        pairs = [(self.users[place], float(values[place])) for place in rated.tolist()]
        targets[rated] = torch.tensor(compare_with_usual(pairs))
        return targets

    def places_with_hidden(self) -> Tensor:
        return (self.slots[: len(self)] >= 0).nonzero().squeeze(1)

    def find(self, event_ids: Iterable[str]) -> Tensor:
        """Places of those of these rows that are here."""
        return torch.tensor([self._places[each] for each in event_ids if each in self._places], dtype=torch.long)

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
        seen = {"num_seen": self.num_seen, "num_hidden_seen": self.num_hidden_seen}
        return tensors, {"ids": self.ids, "users": self.users, **seen}

    def restore(self, tensors: dict[str, Tensor], rest: dict[str, Any]) -> None:
        """Raises KeyError or ValueError, with nothing changed, for what does not fit."""
        named = {name: tensors[name] for name in ("features", "kinds", "numbers", "slots", "hidden")}
        ids, users = [str(each) for each in rest["ids"]], [str(each) for each in rest["users"]]
        seen = int(rest["num_seen"]), int(rest["num_hidden_seen"])
        fits = (
            named["features"].shape[1:] == self.features.shape[1:]
            and named["hidden"].shape[1:] == self.hidden.shape[1:]
        )
        if not fits or {len(ids), len(users)} != {
            len(named[name]) for name in ("features", "kinds", "numbers", "slots")
        }:
            raise ValueError("the rows have other features or hidden states than this release")
        for name, tensor in named.items():
            setattr(self, name, tensor.clone())
        self.ids, self.users = ids, users
        self.num_seen, self.num_hidden_seen = seen
        self.num_hidden = len(self.hidden)
        self._places = {event_id: place for place, event_id in enumerate(ids)}

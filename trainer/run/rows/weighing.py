"""How much each row counts in a round: who said it, for which app, when, and how reliable they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from trainer.math.weights import WeightedRow, weigh_rows
from trainer.text.pairs import Demonstration, Pair

Weigh = Callable[[Sequence[WeightedRow]], list[float]]
"""Weights of all rows of a round, mean 1."""


def describe_row(row: Pair | Demonstration, now: float) -> WeightedRow:
    """What a row's weight hangs on. An answer that somebody wrote does not age."""
    age_s = max(0.0, now - row.chosen_at) if isinstance(row, Pair) else 0.0
    return WeightedRow(row.user, row.app, age_s, row.weight)


def weigh_alike(rows: Sequence[WeightedRow]) -> list[float]:
    """A `Weigh` to which every row counts the same."""
    return [1.0] * len(rows)


def make_weigher(find: Callable[[], Mapping[str, float]], half_life_s: float) -> Weigh:
    """A `Weigh` by reliability and age. find: the people's reliability as it is known now."""

    def weigh(rows: Sequence[WeightedRow]) -> list[float]:
        return weigh_rows(rows, reliability=find(), half_life_s=half_life_s)

    return weigh

"""What a round is made of, written down before it trains: so that a killed round goes on with the same.

Drawing rows is pure. A plan names rows by event id, in order; it holds the settings it was made under, which stay the
round's even if the file changes meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeVar

import msgspec

from trainer.sections.training import RoundKind

T = TypeVar("T")

Start = Literal["stable", "base", "reference"]


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One round.

    parent: the stable checkpoint it is judged beside; start: where the policy begins ("reference": the SFT checkpoint
    instead of the base). reference: id of that checkpoint, None for the base. new and replayed: event ids of pairs, or of
    demonstrations in an SFT round, or of pairs whose prompts a PPO round asks, in the order that learning gets them; weights:
    one each, new ones first.
    num_left: new rows there was no room for; num_available: rows that could be drawn, new and old. watermark: next offset
    by partition when the rows were read. num_frozen: rows left out because a frozen set asks the same. look: 1 for
    the first round beside this parent, 2 for the second. last_signal_id: the newest signal whose outcome counts in a PPO round's
    reward. max_labelled: pairs that the reward model may label beside them; prompts: event ids of the choices whose prompts
    these are sampled on.
    """

    number: int
    kind: RoundKind
    policy: str
    parent: str
    start: Start
    reference: str | None
    new: list[str]
    replayed: list[str]
    weights: list[float]
    num_left: int
    num_available: int
    watermark: dict[int, int]
    last_preference_id: int
    reward_version: int
    trigger_choice_at: float
    seed: int
    settings: dict[str, Any]
    code_version: str
    planned_at: float
    num_frozen: int = 0
    look: int = 1
    last_signal_id: int = 0
    max_labelled: int = 0
    prompts: list[str] = []

    @property
    def event_ids(self) -> list[str]:
        """All rows, new ones first."""
        return [*self.new, *self.replayed]


@dataclass(frozen=True)
class Draw:
    """The rows of a round, and how many new ones wait for the next."""

    new: list[str]
    replayed: list[str]
    num_left: int


def draw_rows(
    new: Sequence[str], old: Sequence[str], *, max_new: int, replay_share: float, is_restart: bool, rng: random.Random
) -> Draw:
    """The newest max_new new rows, and so many old ones that they make up replay_share, if there are as many.

    new, old: in order of arrival. A restart takes all rows: to the base they are all new, whether or not the chain before it
    knew them.
    """
    if is_restart:
        return Draw(list(new), list(old), 0)
    kept = list(new[-max_new:])
    return Draw(kept, draw_sample(old, count_replays(len(kept), replay_share), rng), len(new) - len(kept))


def count_replays(num_new: int, replay_share: float) -> int:
    """How many replayed rows go with num_new new ones, so that they make up replay_share of the whole."""
    return round(num_new * replay_share / (1 - replay_share))


def count_labelled(num_others: int, share: float) -> int:
    """How many pairs labelled by the reward model may stand beside num_others, so that they make up at most share of all."""
    return int(num_others * share / (1 - share) + 1e-9)


def draw_sample(items: Sequence[T], num: int, rng: random.Random) -> list[T]:
    """num items without repeats, in their own order; all of them if there are fewer."""
    if num >= len(items):
        return list(items)
    return [items[index] for index in sorted(rng.sample(range(len(items)), num))]


def find_code_version() -> str:
    """The installed release, "unknown" where there is none."""
    try:
        return version("prefloop")
    except PackageNotFoundError:
        return "unknown"

"""The rows learning sees: one `Pair` for each accepted choice, and which of them a step may use.

Pure: it takes rows and a random generator, and does no I/O. The same rows and generator give the same pairs. It does
not weigh raters: that is the feedback package's concern.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from feedback.events import Choice

T = TypeVar("T")
Use = Literal["trained", "waiting", "heldout_user", "heldout_prompt", "skip", "quarantined"]
DECISIVE = ("first", "second")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One comparison with its verdict. `first` and `second` are the answers in the order they were shown.

    preferred is "first", "second", "tie" or "both_bad"; split is "train", "heldout_user" or "heldout_prompt".
    """

    event_id: str
    user: str
    prompt_key: str
    messages: list[dict[str, Any]]
    first: str
    second: str
    preferred: str
    strength: float | None
    weight: float
    split: str


def explain_use(preferred: str, split: str, used_as_new: int, is_quarantined: bool = False) -> Use:
    """What became of a stored choice: learnt from, waiting to be, or set aside, and then why.

    used_as_new: how often an update of the reward model took it as new. "heldout_…" rows judge what others taught.
    """
    if is_quarantined:
        return "quarantined"
    if preferred == "skip":
        return "skip"
    if split == "heldout_user":
        return "heldout_user"
    if split == "heldout_prompt":
        return "heldout_prompt"
    return "trained" if used_as_new else "waiting"


def make_pair(choice: Choice, *, event_id: str, prompt_key: str, split: str, weight: float = 1.0) -> Pair:
    """The pair of a stored choice. Raises ValueError for a skip, which says nothing of the answers."""
    if choice.preferred == "skip":
        raise ValueError(f"{event_id} is a skip")
    comparison = choice.comparison
    return Pair(
        event_id=event_id,
        user=comparison.user,
        prompt_key=prompt_key,
        messages=comparison.messages,
        first=comparison.first.text,
        second=comparison.second.text,
        preferred=choice.preferred,
        strength=choice.strength,
        weight=weight,
        split=split,
    )


def count_replays(num_new: int, replay_share: float) -> int:
    """How many replayed pairs go with num_new new ones, so that they make up replay_share of the whole."""
    return round(num_new * replay_share / (1 - replay_share))


def draw_sample(items: Sequence[T], num: int, rng: random.Random) -> list[T]:
    """num items without repeats, in their own order; all of them if there are fewer."""
    if num >= len(items):
        return list(items)
    return [items[index] for index in sorted(rng.sample(range(len(items)), num))]


def choose_round_pairs(
    new: Sequence[Pair], old: Sequence[Pair], *, max_new: int, replay_share: float, rng: random.Random
) -> list[Pair]:
    """The newest max_new new pairs, and so many old ones that they make up replay_share, if there are as many."""
    kept = list(new[-max_new:])
    return kept + draw_sample(old, count_replays(len(kept), replay_share), rng)

"""The rows learning sees: one `Pair` for each accepted choice, and which of them a step may use.

Pure: it takes preferences and a random generator, and does no I/O. A pair is drawn as new once and as replay at most
three times for the reward model. It does not weigh raters: that is the feedback package's concern.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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

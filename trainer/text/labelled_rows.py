"""Pairs that a reward model labelled, as a round keeps them on disk: not choices of people, and never mistaken for them."""

from __future__ import annotations

import msgspec

from trainer.text.pairs import Pair


class LabelledPair(msgspec.Struct, frozen=True, kw_only=True):
    """pair: with the preferred answer first. source: event id of the choice whose prompt it is. probability: that a person
    would agree with the label."""

    pair: Pair
    source: str
    probability: float


class Labelled(msgspec.Struct, frozen=True, kw_only=True):
    """What came of labelling. num_alike: prompts whose answers were all the same; num_unsure: that the model is unsure of.

    reason: why there are none; "" if there are some.
    """

    pairs: list[LabelledPair] = []
    num_prompts: int = 0
    num_alike: int = 0
    num_unsure: int = 0
    reason: str = ""

    def figures(self) -> dict[str, float]:
        """How many, and how sure on average."""
        found = [each.probability for each in self.pairs]
        sure = {"labelled_probability": sum(found) / len(found)} if found else {}
        return {"num_labelled": float(len(found)), **sure}

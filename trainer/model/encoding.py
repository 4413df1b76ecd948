"""Token ids of pairs, one row at a time: what cannot be rendered or tokenized is rejected, and the rest goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainer.text.pairs import Pair
from trainer.text.rejected import Reject

if TYPE_CHECKING:
    from trainer.model.stack import PolicyStack

Row = tuple[list[int], int]  # token ids of prompt and answer, number of prompt tokens


@dataclass(frozen=True)
class EncodedPair:
    """A pair with the rows of both answers, in the order in which they were shown."""

    pair: Pair
    first: Row
    second: Row

    @property
    def length(self) -> int:
        """Tokens of the longer row."""
        return max(len(self.first[0]), len(self.second[0]))


def encode_pairs(stack: PolicyStack, pairs: Iterable[Pair], part: str, reject: Reject) -> list[EncodedPair]:
    """The pairs that can be encoded, in their order; the others go to `reject` with the part they failed in."""
    encoded = []
    for pair in pairs:
        try:
            first, second = stack.encode(pair.messages, pair.first), stack.encode(pair.messages, pair.second)
        except Exception as error:  # templates and tokenizers raise what they like
            reject(pair.event_id, part, error)
        else:
            encoded.append(EncodedPair(pair, first, second))
    return encoded

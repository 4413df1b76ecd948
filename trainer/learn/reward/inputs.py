"""What the reward model reads of a row: features of style, and hidden states of the frozen base.

A batch that fails is split until the row is found that is to blame; the others are read once. Scores nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.isolation import NotFinite, run_isolated
from trainer.learn.reward.reservoir import Key
from trainer.learn.reward.rows import key_pair
from trainer.model.heads import pool_answers
from trainer.text.batches import Batch, plan_batches
from trainer.text.style import describe_style
from trainer.text.transcript import EncodedAnswer, EncodedPair

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone


@dataclass(frozen=True)
class Read:
    """A prompt with its answers (two of a pair, else one) and their texts, under the name of the row that they are of."""

    key: Key
    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    texts: tuple[str, ...]

    @property
    def length(self) -> int:
        """Tokens of all in one row."""
        return len(self.prompt) + sum(map(len, self.answers))


def read_pair(encoded: EncodedPair) -> Read:
    pair = encoded.pair
    return Read(key_pair(pair), encoded.prompt, (encoded.first, encoded.second), (pair.first.shown, pair.second.shown))


def read_answer(key: Key, encoded: EncodedAnswer, text: str) -> Read:
    return Read(key, encoded.prompt, (encoded.answer,), (text,))


def describe_answers(backbone: Backbone, row: Read) -> list[tuple[float, ...]]:
    """Features of style of each answer."""
    ends = backbone.transcriber.turn_ends
    asked = backbone.transcriber.decode(row.prompt)
    return [
        describe_style(asked, text, answer[-1] in ends) for answer, text in zip(row.answers, row.texts, strict=True)
    ]


def compute_states(
    backbone: Backbone,
    rows: Sequence[Read],
    pool: Callable[[Tensor, Batch], Tensor],
    fail: Callable[[Read, Exception], None],
    adapter: str | None = None,
) -> dict[int, Tensor]:
    """What `pool` makes of the hidden states under an adapter, (answers, size) on the CPU, by the row's number.

    Rows that fail are given to `fail` and are missing. Without gradients.
    """
    found: dict[int, Tensor] = {}

    def run(numbers: Sequence[int]) -> None:
        batch = backbone.make_batch([(rows[i].prompt, rows[i].answers) for i in numbers])
        pooled = pool(backbone.hidden(batch), batch).cpu()
        if not torch.isfinite(pooled).all():
            raise NotFinite("a hidden state is not finite")
        found.update(zip(numbers, torch.split(pooled, [len(rows[i].answers) for i in numbers]), strict=True))

    with backbone.adapters.inferring(adapter):
        for numbers in plan_batches([row.length for row in rows], backbone.token_budget):
            run_isolated(numbers, run, lambda number, error: fail(rows[number], error))
    return found


def compute_frozen_states(
    backbone: Backbone, rows: Sequence[Read], fail: Callable[[Read, Exception], None]
) -> dict[int, Tensor]:
    """Each answer's last and mean hidden state under the bare base, which never changes."""
    return compute_states(backbone, rows, pool_answers, fail)

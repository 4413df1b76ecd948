"""Log-probabilities of answers under a causal language model.

The lm_head runs on answer tokens alone: with a large vocabulary that is most of the cost. Rows are padded on the right,
so causal attention needs no mask; left-padded rows are not covered.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Right-padded rows. ids and answer_mask: (batch, length), the mask True on the answer's tokens, eos included."""

    ids: Tensor
    answer_mask: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(self.ids.to(device), self.answer_mask.to(device))


def collate(rows: Sequence[tuple[Sequence[int], int]], pad_id: int) -> Batch:
    """Pads rows of (token ids, number of prompt tokens)."""
    length = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), length), pad_id)
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, (tokens, start) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        mask[row, start : len(tokens)] = True
    return Batch(ids, mask)


def answer_logprobs(causal_lm: Any, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sum of the answer tokens' log-probabilities and their number, both (batch,), float32."""
    hidden = causal_lm.model(input_ids=batch.ids, use_cache=False).last_hidden_state[
        :, :-1
    ]  # (batch, length - 1, width)
    keep = batch.answer_mask[:, 1:]  # position t predicts token t + 1
    logits = causal_lm.lm_head(hidden[keep]).float() / temperature  # (kept, vocabulary)
    chosen = torch.log_softmax(logits, -1).gather(1, batch.ids[:, 1:][keep].unsqueeze(1)).squeeze(1)
    rows = keep.nonzero()[:, 0]
    sums = torch.zeros(len(batch.ids), device=chosen.device).index_add(0, rows, chosen)
    return sums, keep.sum(1)

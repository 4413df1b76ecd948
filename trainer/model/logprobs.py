"""Log-probabilities of answers: the lm_head runs on answer tokens alone, in chunks that fit a given memory.

Promises that no more than `logits_mb` of logits exist at a time, also in the backward pass.
Softcapping and scaling are applied as the model's configuration says. Memory of hidden states is not covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.model.lm_head import head_logprobs
from trainer.text.batches import Batch, count_row, locate_answers, plan_batches
from trainer.text.transcript import EncodedAnswer

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

MOST_SHARED = 4  # answers to one prompt in one row: more save little, and the mask grows with the row's square


def answer_logprobs(backbone: Backbone, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Sums of the answers' log-probabilities (answers,) float32 and their numbers of tokens (answers,) int64.

    Under the adapter that is active; differentiable where gradients are on.
    """
    scored, answers = token_logprobs(backbone, batch, temperature)
    sums = torch.zeros(batch.num_answers, device=scored.device).index_add(0, answers, scored)
    return sums, batch.ends - batch.starts


def token_logprobs(backbone: Backbone, batch: Batch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """(log-probability, number of the answer) of every answer token, both (tokens,), answer by answer."""
    rows, predicting, predicted, answers = locate_answers(batch)
    hidden = backbone.hidden(batch)[rows, predicting]
    with backbone.autocast():
        scored = head_logprobs(
            backbone.lm_head,
            backbone.scaling,
            hidden,
            batch.ids[rows, predicted],
            temperature=temperature,
            logits_mb=backbone.logits_mb,
        )
    return scored, answers


def score_answers(
    backbone: Backbone, answers: Sequence[EncodedAnswer], adapter: str | None, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sums and token counts of encoded answers, both (answers,), on the CPU, without gradients."""
    sums, counts = torch.zeros(len(answers)), torch.zeros(len(answers), dtype=torch.long)
    groups = group_by_prompt(answers, MOST_SHARED if backbone.shares_prompt else 1)
    items = [(answers[group[0]].prompt, [answers[i].answer for i in group]) for group in groups]
    with backbone.adapters.inferring(adapter):
        for chosen in plan_batches([count_row(*item) for item in items], backbone.token_budget):
            batch = backbone.make_batch([items[i] for i in chosen])
            total, number = answer_logprobs(backbone, batch, temperature)
            where = [i for group in chosen for i in groups[group]]
            sums[where], counts[where] = total.cpu(), number.cpu()
    return sums, counts


def group_by_prompt(answers: Sequence[EncodedAnswer], most: int) -> list[list[int]]:
    """Indices of answers, those to one prompt together, at most so many: they share a row."""
    groups: list[list[int]] = []
    open_groups: dict[tuple[int, ...], list[int]] = {}
    for index, answer in enumerate(answers):
        group = open_groups.get(answer.prompt)
        if group is None or len(group) == most:
            group = open_groups[answer.prompt] = []
            groups.append(group)
        group.append(index)
    return groups

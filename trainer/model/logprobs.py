"""Log-probabilities of answers: the lm_head runs on answer tokens alone, in chunks that fit a given memory.

Promises that no more than `logits_mb` of logits exist at a time, also in the backward pass, which computes them again.
Softcapping and scaling are applied as the model's configuration says. Memory of hidden states is not covered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainer.text.batches import Batch, count_row, plan_batches
from trainer.text.transcript import EncodedAnswer

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

BYTES_PER_LOGIT = (
    18  # in the backward pass: bfloat16 logits, float32 copy, log-softmax, its gradient, and that in bfloat16
)

MOST_SHARED = 4  # answers to one prompt in one row: more save little, and the mask grows with the row's square


@dataclass(frozen=True)
class Scaling:
    """What a model does to its lm_head's output: times `factor`, then cap * tanh(logits / cap)."""

    factor: float = 1.0
    cap: float | None = None

    def apply(self, logits: Tensor) -> Tensor:
        """Scaled logits, of the same shape."""
        if self.factor != 1.0:
            logits = logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def read_scaling(config: Any) -> Scaling:
    """The scaling of a model: `final_logit_softcapping` (Gemma 2), `logit_scale` (Cohere), `logits_scaling` (Granite)."""
    factor = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)
    return Scaling(factor, None if cap is None else float(cap))


def head_logprobs(
    head: Any, scaling: Scaling, hidden: Tensor, targets: Tensor, *, temperature: float = 1.0, logits_mb: int = 128
) -> Tensor:
    """log p(target) of each hidden state, (tokens,) float32, differentiable in hidden and in the head's weights.

    hidden: (tokens, width); targets: (tokens,). Logits are computed for as many tokens at a time as fit logits_mb.
    """

    def score(part: Tensor, expected: Tensor) -> Tensor:
        logits = scaling.apply(head(part).float())
        return -functional.cross_entropy(
            logits / temperature if temperature != 1 else logits, expected, reduction="none"
        )

    rows = max(1, (logits_mb << 20) // (BYTES_PER_LOGIT * int(head.weight.shape[0])))
    is_training = torch.is_grad_enabled()
    scored = [
        checkpoint(score, part, expected, use_reentrant=False, preserve_rng_state=False)
        if is_training
        else score(part, expected)
        for part, expected in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(scored) if scored else hidden.new_zeros(0, dtype=torch.float32)


def locate_answers(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(row, column that predicts, column predicted, number of the answer) of every answer token, all (tokens,)."""
    counts = batch.ends - batch.starts
    answers = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    offsets = torch.arange(len(answers), device=counts.device) - (counts.cumsum(0) - counts)[answers]
    predicted = batch.starts[answers] + offsets
    predicting = torch.where(offsets == 0, batch.prompt_last[answers], predicted - 1)
    return batch.answer_rows[answers], predicting, predicted, answers


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

"""What both policies hold of given texts, and how far apart they are: KL on sampled ids, anchors, references, bias pairs.

No sampling here: everything is a log-probability under an adapter. Rows are compared as measures does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.judge.frozen import FrozenRow
from trainer.judge.measures import LIKELIHOOD, Asked, Figure, compare
from trainer.learn.sampling.sampler import Sampled
from trainer.model.logprobs import score_answers
from trainer.text.pairs import Answer, Prompt
from trainer.text.transcript import EncodedAnswer

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone


def encode_answers(backbone: Backbone, asked: Sequence[Asked], sampled: Sequence[Sampled]) -> list[EncodedAnswer]:
    """The ids that were sampled behind the ids that were asked; no turn end is made up."""
    n = len(sampled) // len(asked)
    prompts = [backbone.transcriber.encode_prompt(each.prompt) for each in asked]
    return [EncodedAnswer(prompts[i // n], tuple(each.answer.ids or ())) for i, each in enumerate(sampled)]


def measure_kl(
    backbone: Backbone, answers: Sequence[EncodedAnswer], adapter: str, others: Sequence[str | None], temperature: float
) -> list[float]:
    """Monte Carlo KL(adapter || other), nats an answer, over the adapter's own samples, at the temperature they have."""
    mine = score_answers(backbone, answers, adapter, temperature=temperature or 1.0)[0]
    return [
        float((mine - score_answers(backbone, answers, other, temperature=temperature or 1.0)[0]).mean())
        for other in others
    ]


def compare_anchors(backbone: Backbone, rows: Sequence[FrozenRow], temperature: float, min_slice: int) -> list[Figure]:
    """anchors: nats a token of the reference that each policy finds likeliest (styles may change, words must not break).

    references: the chance of one of a fact's references, word for word, at the serving temperature: exact, not sampled.
    """
    asked = [Asked(row.prompt, row) for row in rows]
    if not asked:
        return []
    encoded, sizes = _encode_references(backbone, rows)
    nats: list[list[float | None]] = []
    masses: list[list[float | None]] = []
    for adapter in ("policy", "stable"):
        sums, counts = score_answers(backbone, encoded, adapter)
        nats.append([-each for each in _find_likeliest(sums, counts, sizes)])
        at_serving = (
            sums if temperature in (0, 1) else score_answers(backbone, encoded, adapter, temperature=temperature)[0]
        )
        by_row = [float(part.logsumexp(0).exp()) for part in torch.split(at_serving, sizes)]
        masses.append([mass if size > 1 else None for mass, size in zip(by_row, sizes, strict=True)])
    figures = compare("anchors", asked, nats[0], nats[1], min_slice)
    return figures + compare("references", asked, masses[0], masses[1], min_slice)


def compare_demonstrations(backbone: Backbone, rows: Sequence[FrozenRow], min_slice: int) -> list[Figure]:
    """likelihood: log-probability a token, in nats, of the reference that each policy finds likeliest."""
    asked = [Asked(row.prompt, row) for row in rows]
    if not asked:
        return []
    encoded, sizes = _encode_references(backbone, rows)
    found = [_find_likeliest(*score_answers(backbone, encoded, adapter), sizes) for adapter in ("policy", "stable")]
    return compare(LIKELIHOOD, asked, found[0], found[1], min_slice)


def _encode_references(backbone: Backbone, rows: Sequence[FrozenRow]) -> tuple[list[EncodedAnswer], list[int]]:
    """All references of all rows, and how many each row has."""
    encoded = [_encode_text(backbone, row.prompt, text) for row in rows for text in row.references]
    return encoded, [len(row.references) for row in rows]


def _find_likeliest(sums: Tensor, counts: Tensor, sizes: list[int]) -> list[float]:
    """Log-probability a token of each row's likeliest reference."""
    return [float(each.max()) for each in torch.split(sums / counts, sizes)]


def compare_bias(backbone: Backbone, rows: Sequence[FrozenRow], min_slice: int) -> list[Figure]:
    """bias: how differently likely the same answer is behind both prompts of a row, nats an answer, without its sign."""
    asked = [Asked(row.prompt, row) for row in rows if row.other is not None and row.references]
    if not asked:
        return []
    encoded = []
    for each in asked:
        assert each.row is not None and each.row.other is not None
        encoded += [_encode_text(backbone, prompt, each.row.references[0]) for prompt in (each.prompt, each.row.other)]
    gaps: list[list[float | None]] = []
    for adapter in ("policy", "stable"):
        sums = score_answers(backbone, encoded, adapter)[0]
        gaps.append((sums[0::2] - sums[1::2]).abs().tolist())
    return compare("bias", asked, gaps[0], gaps[1], min_slice)


def _encode_text(backbone: Backbone, prompt: Prompt, text: str) -> EncodedAnswer:
    return backbone.transcriber.encode_answer(replace(prompt, ids=None), Answer(text=text))

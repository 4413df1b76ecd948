"""Rows of token ids as tensors: answers share their prompt in one row, and batches are filled up to a token budget.

A shared row is prompt, first answer, second answer: positions start again after the prompt for each answer, and the mask
hides the answers from each other. Padding stands on the right. What is an answer follows from lengths, never from ids, so
that pad may equal eos. Says nothing of devices' memory.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Item = tuple[tuple[int, ...], Sequence[tuple[int, ...]]]
"""A prompt's token ids, and those of its answers."""


@dataclass(frozen=True)
class Batch:
    """Answers in rows. ids, position_ids: (rows, length) int64; attention_mask: (rows, 1, length, length) bool, True where a
    token (third axis) sees another (fourth), or None where plain causal attention is right.

    answer_rows, starts, ends, prompt_last: (answers,) int64. Answer a is ids[answer_rows[a], starts[a]:ends[a]]; the hidden
    state at column prompt_last[a] predicts its first token.
    """

    ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    answer_rows: Tensor
    starts: Tensor
    ends: Tensor
    prompt_last: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        mask = self.attention_mask
        return Batch(
            ids=self.ids.to(device),
            position_ids=self.position_ids.to(device),
            attention_mask=None if mask is None else mask.to(device),
            answer_rows=self.answer_rows.to(device),
            starts=self.starts.to(device),
            ends=self.ends.to(device),
            prompt_last=self.prompt_last.to(device),
        )

    @property
    def num_answers(self) -> int:
        """Answers in all rows."""
        return len(self.starts)


def make_batch(items: Sequence[Item], pad_id: int, share_prompt: bool = True, max_length: int | None = None) -> Batch:
    """One row an item, or with share_prompt=False one row an answer; answers are numbered in the order given.

    max_length: what padding never goes beyond, a model's context for instance.
    Raises ValueError for an empty prompt, an item without answers or an empty answer.
    """
    for prompt, answers in items:
        if not prompt or not answers or not all(answers):
            raise ValueError("an item needs a prompt and answers of at least one token")
    rows: list[Item] = list(items) if share_prompt else [(p, [a]) for p, answers in items for a in answers]
    if not rows:
        raise ValueError("a batch needs an item")
    longest = max(count_row(prompt, answers) for prompt, answers in rows)
    length = max(longest, min(pad_length(longest), max_length or sys.maxsize))
    ids = torch.full((len(rows), length), pad_id)
    positions = torch.arange(length).repeat(len(rows), 1)
    segments = torch.zeros(len(rows), length, dtype=torch.long)  # 0 for prompt and padding, else the answer's number
    places: list[tuple[int, int, int, int]] = []
    for row, (prompt, answers) in enumerate(rows):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        start = len(prompt)
        for number, answer in enumerate(answers, start=1):
            end = start + len(answer)
            ids[row, start:end] = torch.tensor(answer)
            positions[row, start:end] = torch.arange(len(prompt), len(prompt) + len(answer))
            segments[row, start:end] = number
            places.append((row, start, end, len(prompt) - 1))
            start = end
        positions[row, start:] = 0
    answer_rows, starts, ends, prompt_last = torch.tensor(places).unbind(1)
    is_shared = any(len(answers) > 1 for _, answers in rows)
    mask = make_mask(segments) if is_shared else None
    if mask is None:
        positions = torch.arange(length).repeat(len(rows), 1)
    return Batch(ids, positions, mask, answer_rows, starts, ends, prompt_last)


def make_mask(segments: Tensor) -> Tensor:
    """Who sees whom, (rows, 1, length, length): the past, if it is the prompt or of the same answer.

    segments: (rows, length), 0 for the prompt. Padding (0 behind the answers) sees the prompt, and nobody sees padding.
    """
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    own, other = segments[:, :, None], segments[:, None, :]
    return (causal & ((other == 0) | (own == other)))[:, None]


def count_row(prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> int:
    """Tokens of a row that holds a prompt once and all its answers."""
    return len(prompt) + sum(len(answer) for answer in answers)


def pad_length(longest: int) -> int:
    """What a batch's rows are padded to: at most an eighth more, and 8 lengths from one power of two to the next.

    A CPU's kernels (oneDNN) are made for every shape and kept: with rows as long as they come a process that trains for long
    went on growing, and slowed down.
    """
    step = 1 << max(0, longest.bit_length() - 4)
    return -(-longest // step) * step


def plan_batches(lengths: Sequence[int], token_budget: int, num_processes: int = 1) -> list[list[int]]:
    """Indices of rows in batches, the shortest first: rows x the longest of a batch, padded, <= token_budget.

    A row longer than the budget stands alone. Rows of one length keep their order. For several processes the largest batches
    are halved until all processes get as many, as far as there are rows.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and (len(batches[-1]) + 1) * pad_length(lengths[index]) <= token_budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    while len(batches) % num_processes:
        place = max(range(len(batches)), key=lambda i: (len(batches[i]) * lengths[batches[i][-1]], len(batches[i])))
        if len(batches[place]) == 1:
            place = max(range(len(batches)), key=lambda i: len(batches[i]))
        largest = batches[place]
        if len(largest) == 1:
            break
        half = len(largest) // 2
        batches[place : place + 1] = [largest[:half], largest[half:]]
    return batches


def locate_answers(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(row, column that predicts, column predicted, number of the answer) of every answer token, all (tokens,)."""
    counts = batch.ends - batch.starts
    answers = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    offsets = torch.arange(len(answers), device=counts.device) - (counts.cumsum(0) - counts)[answers]
    predicted = batch.starts[answers] + offsets
    predicting = torch.where(offsets == 0, batch.prompt_last[answers], predicted - 1)
    return batch.answer_rows[answers], predicting, predicted, answers

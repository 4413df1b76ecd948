"""fp32 heads beside the backbone: a point estimate and its doubt from frozen hidden states, and linear ones for adapters.

What a head reads is standardised by scales that are fixed when the first answers come. Heads are no part of an adapter, and are
saved by whoever owns them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from trainer.text.batches import Batch, locate_answers


def pool_answers(hidden: Tensor, batch: Batch) -> Tensor:
    """Hidden state of each answer's last token beside the mean of all its tokens: (answers, 2 width), float32.

    hidden: (rows, length, width), of the batch.
    """
    counts = batch.ends - batch.starts
    answers = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    columns = (
        batch.starts[answers] + torch.arange(len(answers), device=counts.device) - (counts.cumsum(0) - counts)[answers]
    )
    tokens = hidden[batch.answer_rows[answers], columns].float()
    sums = torch.zeros(len(counts), hidden.shape[-1], device=hidden.device).index_add(0, answers, tokens)
    return torch.cat([last_states(hidden, batch), sums / counts[:, None]], 1)


def predicting_states(hidden: Tensor, batch: Batch) -> Tensor:
    """Hidden state of the token before each answer token, (tokens, width), float32, answer by answer: what a token is chosen by."""
    rows, predicting, _, _ = locate_answers(batch)
    return hidden[rows, predicting].float()


def last_states(hidden: Tensor, batch: Batch) -> Tensor:
    """Hidden state of each answer's last token: (answers, width), float32."""
    return hidden[batch.answer_rows, batch.ends - 1].float()


class Standardiser(nn.Module):
    """Centres and scales each column by the first rows it was shown, and never by others; before that, not at all.

    Where there are more columns than size, a fixed random projection takes them to size first (Johnson and Lindenstrauss 1984).
    """

    projection: Tensor
    column_scale: Tensor
    mean: Tensor
    scale: Tensor
    is_fixed: Tensor

    def __init__(self, columns: int, size: int, seed: int) -> None:
        super().__init__()
        self.size = min(columns, size)
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn(columns, self.size, generator=generator) / math.sqrt(self.size)
        self.register_buffer("projection", drawn if columns > size else torch.zeros(0))
        self.register_buffer("column_scale", torch.ones(columns))
        self.register_buffer("mean", torch.zeros(columns))
        self.register_buffer("scale", torch.ones(self.size))
        self.register_buffer("is_fixed", torch.tensor(False))

    def fix(self, rows: Tensor) -> None:
        """rows: (rows, columns). The spread of a column from few rows is drawn towards that of all."""
        if self.is_fixed:
            return
        self.mean.copy_(rows.mean(0))
        variance = rows.var(0, unbiased=False)
        shrunk = (len(rows) * variance + 8 * variance.mean()) / (len(rows) + 8)
        self.column_scale.copy_(1 / (shrunk.sqrt() + 1e-6))
        if self.projection.numel():
            self.scale.copy_(self._project(rows).std(0, unbiased=False).clamp(min=1e-3).reciprocal())
        self.is_fixed.fill_(True)

    def _project(self, rows: Tensor) -> Tensor:
        scaled = (rows - self.mean) * self.column_scale
        return scaled @ self.projection if self.projection.numel() else scaled

    def forward(self, rows: Tensor) -> Tensor:
        """(rows, columns) to (rows, size), float32, at most 8 away from 0."""
        return (self._project(rows) * self.scale).clamp(-8, 8)


class EpistemicHead(nn.Module):
    """One point network, and num_draws networks that say where it may be wrong (Osband et al. 2023; Dwaracherla et al. 2024).

    Each draw is a frozen random prior plus a trained network, which learns to cancel it where there is data. All networks have one
    hidden layer and are anchored at their start (Pearce et al. 2020).
    """

    start: Tensor
    prior_first: Tensor
    prior_second: Tensor

    def __init__(self, size: int, num_draws: int, width: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        self.size, self.num_draws, self.width = size, num_draws, width
        # network 0 is the point, networks 1 to num_draws are trained against their priors
        start = draw(num_draws + 1, size, width) / math.sqrt(size)
        self.first = nn.Parameter(start.clone())
        self.second = nn.Parameter(torch.zeros(num_draws + 1, width))
        self.register_buffer("start", start)
        self.register_buffer("prior_first", draw(num_draws, size, width) / math.sqrt(size))
        self.register_buffer("prior_second", draw(num_draws, width) / math.sqrt(width))

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """rows: (..., size). Returns the point (...) and what each draw adds to it (..., num_draws)."""
        flat = rows.reshape(-1, self.size)
        trained = self._run(flat, self.first, self.second)
        prior = self._run(flat, self.prior_first, self.prior_second)
        shape = rows.shape[:-1]
        return trained[:, 0].view(shape), (trained[:, 1:] + prior).view(*shape, self.num_draws)

    @staticmethod
    def _run(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
        networks, size, width = first.shape
        hidden = torch.tanh(rows @ first.permute(1, 0, 2).reshape(size, networks * width)).view(-1, networks, width)
        return (hidden * second).sum(-1)  # (rows, networks)

    def penalty(self) -> Tensor:
        """Negative log prior of each network, the point's first: outputs have spread about 1 before any data."""
        moved = (self.first - self.start).square().sum((1, 2))
        return 0.5 * (self.size * moved + self.width * self.second.square().sum(1))


class AdapterHead(nn.Module):
    """A linear score from the last token's hidden state under an adapter; 0 before it has learnt."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 1, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, states: Tensor) -> Tensor:
        """states: (answers, size). Returns (answers,)."""
        scores: Tensor = self.linear(states).squeeze(-1) / math.sqrt(states.shape[-1])
        return scores


class ValueHead(nn.Module):
    """What reward is still to come, from the hidden state that an answer's token is chosen by; 0 before it has learnt."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def take_over(self, head: AdapterHead, standardiser: Standardiser, share: float) -> None:
        """Give each state what an adapter's head gives it, times share: the standardiser's part becomes weights and bias.

        But for its limit of 8 spreads. Raises ValueError where it projects, which a linear head of this size cannot.
        """
        if standardiser.projection.numel():
            raise ValueError("the value head has no projection")
        slopes = head.linear.weight * standardiser.column_scale * standardiser.scale * share
        with torch.no_grad():
            self.linear.weight.copy_(slopes)
            self.linear.bias.copy_(-(slopes @ standardiser.mean) / math.sqrt(slopes.shape[-1]))

    def forward(self, states: Tensor) -> Tensor:
        """states: (tokens, size). Returns (tokens,)."""
        values: Tensor = (states @ self.linear.weight.T).squeeze(-1) / math.sqrt(states.shape[-1])
        return values + self.linear.bias

"""The reward model: what people prefer, learnt from their choices a few at a time.

Four heads on the `reward` adapter, each seeing its own bootstrap of the pairs; their spread says how unsure the score is. Ties
count (Rao-Kupper), and the pull of the first place is fitted and left out of scores. Not for answers longer than the model reads.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from trainer.losses import rao_kupper_logprobs, weighted_mean
from trainer.models import Messages, PolicyStack

if TYPE_CHECKING:
    from trainer.dataset import Pair


@dataclass(frozen=True)
class RewardSettings:
    """How the heads and their adapter learn."""

    num_heads: int = 4
    adapter_lr: float = 1e-3
    head_lr: float = 1e-2
    batch_size: int = 16
    label_smoothing: float = 0.1
    centre_weight: float = 0.01
    start_nu: float = 3.0
    pessimism: float = 1.0  # lambda of mean - lambda std


@dataclass(frozen=True)
class Scores:
    """mean and std over heads, both (answers,); `cautious` is mean - lambda std."""

    mean: Tensor
    std: Tensor
    cautious: Tensor


def bootstrap_weights(event_id: str, num_heads: int) -> list[float]:
    """Exponential weights, one a head, fixed by the event: a replayed pair weighs what it weighed (Rubin 1981)."""
    digest = hashlib.sha256(event_id.encode()).digest()
    draws = [int.from_bytes(digest[4 * head : 4 * head + 4], "big") for head in range(num_heads)]
    return [-math.log((draw + 0.5) / 2**32) for draw in draws]


class RewardHead(nn.Module):
    """fp32 scores from the mean and the last of an answer's hidden states; holds the tie width and the first place's pull."""

    def __init__(self, hidden_size: int, num_heads: int, start_nu: float) -> None:
        super().__init__()
        self.linear = nn.Linear(2 * hidden_size, num_heads, bias=False)
        nn.init.normal_(self.linear.weight, std=0.02)
        self.raw_nu = nn.Parameter(torch.tensor(math.log(math.expm1(math.log(start_nu)))))  # softplus gives log nu > 0
        self.first_place = nn.Parameter(torch.tensor(0.0))

    @property
    def log_nu(self) -> Tensor:
        return nn.functional.softplus(self.raw_nu) + 1e-3

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """hidden: (batch, length, width), mask: (batch, length), True on the answer. Returns (batch, heads)."""
        kept = mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * kept).sum(1) / kept.sum(1)
        last = hidden[torch.arange(len(hidden), device=hidden.device), mask.shape[1] - 1 - mask.flip(1).int().argmax(1)]
        return self.linear(torch.cat([mean, last], 1).float())


class RewardModel:
    """Learns from pairs and scores answers.

    version counts the updates; foreseen is (correct, total) over the decisive pairs that came new since the first update,
    each guessed before anything was learnt from it (prequential, Dawid 1984).
    """

    def __init__(self, stack: PolicyStack, settings: RewardSettings | None = None) -> None:
        self.stack = stack
        self.settings = settings or RewardSettings()
        self.version = 0
        self.foreseen = (0, 0)
        self.head = RewardHead(stack.hidden_size, self.settings.num_heads, self.settings.start_nu).to(stack.device)
        groups: list[dict[str, Any]] = [
            {"params": list(stack.parameters_of("reward").values()), "lr": self.settings.adapter_lr},
            {"params": list(self.head.parameters()), "lr": self.settings.head_lr},
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.01)

    def update(self, new: Sequence["Pair"], replay: Sequence["Pair"]) -> dict[str, float]:
        """One pass over new and replayed pairs, mixed. Returns loss, accuracy, nu and the fitted pull of the first place."""
        pairs = [pair for pair in (*new, *replay) if pair.weight > 0 and pair.preferred != "skip"]
        if not pairs:
            return {}
        if self.version > 0:  # before that the heads know nothing
            correct, total = self.accuracy([pair for pair in new if pair.weight > 0])
            self.foreseen = (self.foreseen[0] + correct, self.foreseen[1] + total)
        pairs.sort(key=lambda pair: hashlib.sha256(f"{self.version}{pair.event_id}".encode()).digest())
        sums = {"loss": 0.0, "correct": 0.0, "decisive": 0.0}
        with self.stack.training("reward") as parameters:
            everything = [*parameters, *self.head.parameters()]
            for start in range(0, len(pairs), self.settings.batch_size):
                batch = pairs[start : start + self.settings.batch_size]
                loss, right, decisive = self._compute_loss(batch)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(everything, 1.0)
                self.optimizer.step()
                sums["loss"] += loss.item() * len(batch)
                sums["correct"] += right
                sums["decisive"] += decisive
        self.version += 1
        return {
            "loss": sums["loss"] / len(pairs),
            "accuracy_train": sums["correct"] / max(1.0, sums["decisive"]),
            "nu": math.exp(self.head.log_nu.item()),
            "first_place": self.head.first_place.item(),
            "num_pairs": float(len(pairs)),
            "foreseen": self.foreseen[0] / max(1, self.foreseen[1]),
        }

    def _compute_loss(self, batch: Sequence["Pair"]) -> tuple[Tensor, float, float]:
        """Weighted Rao-Kupper loss over heads, and how many decisive pairs the mean score got right."""
        settings, device = self.settings, self.stack.device
        rows = [self.stack.encode(p.messages, p.first) for p in batch]
        rows += [self.stack.encode(p.messages, p.second) for p in batch]
        first, second = self._forward(rows).chunk(2)  # (pairs, heads) each
        win, lose, tie = rao_kupper_logprobs(first - second + self.head.first_place, self.head.log_nu)
        sign = torch.tensor([{"first": 1, "second": -1}.get(p.preferred, 0) for p in batch], device=device)
        chosen = torch.where(sign[:, None] > 0, win, lose)
        rejected = torch.where(sign[:, None] > 0, lose, win)
        smoothed = (1 - settings.label_smoothing) * chosen + settings.label_smoothing * rejected
        each = -torch.where(sign[:, None] == 0, tie, smoothed)
        weights = torch.tensor(
            [[p.weight * w for w in bootstrap_weights(p.event_id, settings.num_heads)] for p in batch], device=device
        )
        loss = weighted_mean(each, weights) + settings.centre_weight * ((first + second) ** 2).mean()
        guess = (first - second).mean(1) * sign
        return loss, float((guess > 0).sum()), float((sign != 0).sum())

    def _forward(self, rows: Sequence[tuple[list[int], int]]) -> Tensor:
        batch = self.stack.collate(rows)
        hidden = self.stack.causal_lm.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        return self.head(hidden, batch.answer_mask)

    def score(self, messages_list: Sequence[Messages], answers: Sequence[str], batch_size: int = 64) -> Scores:
        """Scores of answers, one per prompt."""
        rows = [self.stack.encode(messages, answer) for messages, answer in zip(messages_list, answers, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        scores = torch.zeros(len(rows), self.settings.num_heads)
        with self.stack.inferring("reward"):
            for start in range(0, len(order), batch_size):
                chosen = order[start : start + batch_size]
                scores[chosen] = self._forward([rows[i] for i in chosen]).cpu()
        mean, std = scores.mean(1), scores.std(1)
        return Scores(mean, std, mean - self.settings.pessimism * std)

    def accuracy(self, pairs: Sequence["Pair"]) -> tuple[int, int]:
        """(correct, total) over decisive pairs; the place an answer was shown in plays no part."""
        decisive = [pair for pair in pairs if pair.preferred in ("first", "second")]
        if not decisive:
            return 0, 0
        messages = [pair.messages for pair in decisive]
        first = self.score(messages, [pair.first for pair in decisive]).mean
        second = self.score(messages, [pair.second for pair in decisive]).mean
        wins = (first > second).tolist()
        correct = sum(won == (pair.preferred == "first") for won, pair in zip(wins, decisive, strict=True))
        return correct, len(decisive)

    def save(self, out_dir: str | Path) -> None:
        """Writes adapter, heads and version; the optimizer's moments are not kept."""
        out = Path(out_dir)
        self.stack.save_adapter("reward", out)
        save_file({name: t.detach().cpu() for name, t in self.head.state_dict().items()}, out / "heads.safetensors")
        (out / "reward.json").write_text(
            json.dumps({"version": self.version, "foreseen": self.foreseen}) + "\n", encoding="utf-8"
        )

    def load(self, path: str | Path) -> None:
        """Takes up where `save` left off. Raises FileNotFoundError or AdapterMismatch."""
        saved = json.loads((Path(path) / "reward.json").read_text(encoding="utf-8"))
        state = load_file(Path(path) / "heads.safetensors")
        self.stack.load_adapter("reward", path)
        self.head.load_state_dict(state)
        self.version = int(saved["version"])
        self.foreseen = (int(saved["foreseen"][0]), int(saved["foreseen"][1]))

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

from trainer.learn.isolation import NotFinite, run_isolated
from trainer.math.losses import rao_kupper_logprobs, weighted_mean
from trainer.model.encoding import EncodedPair, Row, encode_pairs
from trainer.model.stack import AdapterMismatch, Messages, PolicyStack
from trainer.text.rejected import Reject, log_rejected

if TYPE_CHECKING:
    from trainer.text.pairs import Pair

PART = "reward"


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
        scores: Tensor = self.linear(torch.cat([mean, last], 1).float())
        return scores


class RewardModel:
    """Learns from pairs and scores answers. What cannot be learnt from is rejected, and changes nothing for the others.

    version counts the updates; foreseen is (correct, total) over the decisive pairs that came new since the first update,
    each guessed before anything was learnt from it (prequential, Dawid 1984).
    """

    def __init__(
        self, stack: PolicyStack, settings: RewardSettings | None = None, reject: Reject = log_rejected
    ) -> None:
        self.stack = stack
        self._reject = reject
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
        """One pass over new and replayed pairs, mixed. Returns loss, accuracy, nu and the fitted pull of the first place.

        {}, and nothing was changed, if no pair could be learnt from.
        """
        pairs = [pair for pair in (*new, *replay) if pair.weight > 0 and pair.preferred != "skip"]
        encoded = encode_pairs(self.stack, pairs, PART, self._reject)
        first_seen = {pair.event_id for pair in new}
        guessed = (0, 0)
        if self.version > 0:  # before that the heads know nothing
            guessed = self._measure([each for each in encoded if each.pair.event_id in first_seen])
        encoded.sort(key=lambda each: hashlib.sha256(f"{self.version}{each.pair.event_id}".encode()).digest())
        sums = self._train(encoded)
        if not sums["pairs"]:
            return {}
        self.foreseen = (self.foreseen[0] + guessed[0], self.foreseen[1] + guessed[1])
        self.version += 1
        return {
            "loss": sums["loss"] / sums["pairs"],
            "accuracy_train": sums["correct"] / max(1.0, sums["decisive"]),
            "nu": math.exp(self.head.log_nu.item()),
            "first_place": self.head.first_place.item(),
            "num_pairs": sums["pairs"],
            "foreseen": self.foreseen[0] / max(1, self.foreseen[1]),
        }

    def _train(self, encoded: Sequence[EncodedPair]) -> dict[str, float]:
        """One optimizer step a batch; returns sums over the pairs that were learnt from."""
        sums = {"pairs": 0.0, "loss": 0.0, "correct": 0.0, "decisive": 0.0}
        with self.stack.training("reward") as parameters:
            everything = [*parameters, *self.head.parameters()]

            def step(batch: Sequence[EncodedPair]) -> None:
                loss, correct, decisive = self._compute_loss(batch)
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                norm = nn.utils.clip_grad_norm_(everything, 1.0)
                if not (torch.isfinite(loss) and torch.isfinite(norm)):
                    raise NotFinite(f"the loss is {loss.item()}, its gradient's norm {norm.item()}")
                self.optimizer.step()
                learnt = {
                    "pairs": len(batch),
                    "loss": loss.item() * len(batch),
                    "correct": correct,
                    "decisive": decisive,
                }
                for name, value in learnt.items():
                    sums[name] += value

            for start in range(0, len(encoded), self.settings.batch_size):
                run_isolated(encoded[start : start + self.settings.batch_size], step, self._reject_if_sound)
        return sums

    def _reject_if_sound(self, failed: EncodedPair, error: Exception) -> None:
        """Reject a pair that failed alone. Raises its error if the model itself is broken."""
        heads = all(torch.isfinite(parameter).all() for parameter in self.head.parameters())
        if not (heads and self.stack.is_sound("reward")):
            raise error
        self._reject(failed.pair.event_id, PART, error)

    def _compute_loss(self, batch: Sequence[EncodedPair]) -> tuple[Tensor, float, float]:
        """Weighted Rao-Kupper loss over heads, and how many decisive pairs the mean score got right."""
        settings, device = self.settings, self.stack.device
        pairs = [each.pair for each in batch]
        rows = [each.first for each in batch] + [each.second for each in batch]
        first, second = self._forward(rows).chunk(2)  # (pairs, heads) each
        win, lose, tie = rao_kupper_logprobs(first - second + self.head.first_place, self.head.log_nu)
        sign = torch.tensor([{"first": 1, "second": -1}.get(p.preferred, 0) for p in pairs], device=device)
        chosen = torch.where(sign[:, None] > 0, win, lose)
        rejected = torch.where(sign[:, None] > 0, lose, win)
        smoothed = (1 - settings.label_smoothing) * chosen + settings.label_smoothing * rejected
        each_loss = -torch.where(sign[:, None] == 0, tie, smoothed)
        weights = torch.tensor(
            [[p.weight * w for w in bootstrap_weights(p.event_id, settings.num_heads)] for p in pairs], device=device
        )
        loss = weighted_mean(each_loss, weights) + settings.centre_weight * ((first + second) ** 2).mean()
        guess = (first - second).mean(1) * sign
        return loss, float((guess > 0).sum()), float((sign != 0).sum())

    def _forward(self, rows: Sequence[Row]) -> Tensor:
        """Scores (rows, heads), with gradients if they are on."""
        batch = self.stack.collate(rows)
        hidden = self.stack.causal_lm.model(input_ids=batch.ids, use_cache=False).last_hidden_state
        scores: Tensor = self.head(hidden, batch.answer_mask)
        return scores

    def score(self, messages_list: Sequence[Messages], answers: Sequence[str], batch_size: int = 64) -> Scores:
        """Scores of sampled answers, one per prompt."""
        rows = [
            self.stack.encode(messages, answer, cut=True)
            for messages, answer in zip(messages_list, answers, strict=True)
        ]
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
        return self._measure(encode_pairs(self.stack, decisive, PART, self._reject))

    def _measure(self, encoded: Sequence[EncodedPair], batch_size: int = 32) -> tuple[int, int]:
        """`accuracy` of encoded pairs; those that are not decisive are left out."""
        decisive = sorted((each for each in encoded if each.pair.preferred in ("first", "second")), key=_length)
        won: list[bool] = []

        def guess(batch: Sequence[EncodedPair]) -> None:
            scores = self._forward([row for each in batch for row in (each.first, each.second)]).mean(1)
            if not torch.isfinite(scores).all():
                raise NotFinite("a score is not finite")
            is_first = (scores[0::2] > scores[1::2]).tolist()
            won.extend(one == (each.pair.preferred == "first") for one, each in zip(is_first, batch, strict=True))

        with self.stack.inferring("reward"):
            for start in range(0, len(decisive), batch_size):
                run_isolated(decisive[start : start + batch_size], guess, self._reject_if_sound)
        return sum(won), len(won)

    def save(self, out_dir: str | Path) -> None:
        """Writes adapter, heads and version; the optimizer's moments are not kept."""
        out = Path(out_dir)
        self.stack.save_adapter("reward", out)
        save_file({name: t.detach().cpu() for name, t in self.head.state_dict().items()}, out / "heads.safetensors")
        (out / "reward.json").write_text(
            json.dumps({"version": self.version, "foreseen": self.foreseen}) + "\n", encoding="utf-8"
        )

    def load(self, path: str | Path) -> None:
        """Takes up where `save` left off. Whatever it raises (OSError, ValueError, AdapterMismatch), nothing was changed."""
        saved = json.loads((Path(path) / "reward.json").read_text(encoding="utf-8"))
        version, foreseen = int(saved["version"]), (int(saved["foreseen"][0]), int(saved["foreseen"][1]))
        state, expected = load_file(Path(path) / "heads.safetensors"), self.head.state_dict()
        if {name: t.shape for name, t in state.items()} != {name: t.shape for name, t in expected.items()}:
            raise AdapterMismatch("the heads have other tensors than this release")
        if not all(torch.isfinite(tensor).all() for tensor in state.values()):
            raise AdapterMismatch("the heads hold values that are not finite")
        self.stack.load_adapter("reward", path)
        self.head.load_state_dict(state)
        self.version, self.foreseen = version, foreseen


def _length(each: EncodedPair) -> int:
    return each.length

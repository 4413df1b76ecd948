"""One iteration's experience: what a policy said, how likely that was, what it was worth, and what had been expected of it.

Old log-probabilities are computed here, at the sampling temperature: what the sampler drew by only weighs tokens against them.
Answers whose two differ too much are dropped and counted; rows that cannot be computed are rejected. Samples nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from feedback.durable import replacing
from trainer.learn.isolation import NotFinite, run_isolated
from trainer.learn.ppo.value import ADAPTER, token_values
from trainer.learn.rewards.rewards import Rewarded, Rewards, Sample
from trainer.learn.sampling.sampler import Sampled
from trainer.learn.training import NothingToTrainOn
from trainer.math.advantages import estimate_advantages, whiten
from trainer.math.ppo_losses import explained_variance, importance_weights, k1, keep_close
from trainer.model.heads import ValueHead
from trainer.model.logprobs import MOST_SHARED, group_by_prompt, token_logprobs
from trainer.sections.training import PpoSection
from trainer.text.batches import Batch, count_row, plan_batches
from trainer.text.pairs import PromptRow
from trainer.text.transcript import EncodedAnswer

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

References = Callable[[Sequence[EncodedAnswer]], Tensor]
"""Log-probabilities of all tokens of answers, (tokens,), answer by answer."""

Blame = Callable[[str, Exception], None]
"""Called with the event id of a prompt to which an answer failed; raises the error if no answer is to blame."""


@dataclass(frozen=True)
class Experience:
    """What is learnt from. Tensors over tokens, (tokens,) float32 on the CPU, answer by answer.

    event_ids: one an answer. old: log-probabilities; weights: truncated importance weights; figures: means of the iteration.
    """

    event_ids: tuple[str, ...]
    answers: tuple[EncodedAnswer, ...]
    old: Tensor
    values: Tensor
    weights: Tensor
    advantages: Tensor
    returns: Tensor
    figures: dict[str, float]

    def list_places(self) -> list[range]:
        """Where each answer's tokens stand."""
        return _list_places([len(answer.answer) for answer in self.answers])

    def save(self, path: Path) -> None:
        """Write safetensors, put in place by one rename."""
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {name: getattr(self, name).contiguous() for name in TOKEN_TENSORS}
        for name, ids in (("prompt", [a.prompt for a in self.answers]), ("answer", [a.answer for a in self.answers])):
            tensors[f"{name}_ids"] = torch.tensor([token for each in ids for token in each], dtype=torch.long)
            tensors[f"{name}_lengths"] = torch.tensor([len(each) for each in ids], dtype=torch.long)
        about = json.dumps({"event_ids": self.event_ids, "figures": self.figures})
        with replacing(path) as written:
            save_file(tensors, written, metadata={"experience": about})

    @classmethod
    def load(cls, path: Path) -> Experience:
        """What was saved. Raises FileNotFoundError, and SafetensorError or KeyError for a file of another form."""
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["experience"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        ids = {
            name: [
                tuple(part.tolist())
                for part in torch.split(tensors[f"{name}_ids"], tensors[f"{name}_lengths"].tolist())
            ]
            for name in ("prompt", "answer")
        }
        return cls(
            event_ids=tuple(about["event_ids"]),
            answers=tuple(EncodedAnswer(*pair) for pair in zip(ids["prompt"], ids["answer"], strict=True)),
            figures=about["figures"],
            **{name: tensors[name] for name in TOKEN_TENSORS},
        )


class NothingLearnable(NothingToTrainOn):
    """No answer of an iteration can be learnt from; num_dropped were too far from what they were drawn by, the others failed."""

    def __init__(self, num_sampled: int, num_dropped: int) -> None:
        super().__init__(f"of {num_sampled} answers {num_dropped} were dropped as far from what they were drawn by")
        self.num_dropped, self.num_failed = num_dropped, num_sampled - num_dropped


TOKEN_TENSORS = ("old", "values", "weights", "advantages", "returns")


@dataclass(frozen=True, eq=False)
class _Said:
    """A sampled answer to a row's prompt."""

    row: PromptRow
    sampled: Sampled
    encoded: EncodedAnswer


class ExperienceMaker:
    """Measures answers of adapter "policy" under the adapters as they stand.

    reference: the adapter that KL is to, None for the base; references takes its place if given. temperature: what samples are
    drawn at.
    """

    def __init__(
        self,
        backbone: Backbone,
        section: PpoSection,
        value: ValueHead,
        *,
        rewards: Rewards,
        reference: str | None,
        references: References | None,
        temperature: float,
        blame: Blame,
    ) -> None:
        self._backbone, self._section, self._value, self._rewards = backbone, section, value, rewards
        self._reference, self._references = reference, references
        self._temperature, self._blame = temperature, blame

    def make(
        self, rows: Sequence[PromptRow], sampled: Sequence[Sequence[Sampled]], kl_coefficient: float
    ) -> Experience:
        """sampled: answers to each row's prompt. Raises NothingLearnable if none of them can be learnt from."""
        encode = self._backbone.transcriber.encode_prompt
        said = [
            _Said(row, each, EncodedAnswer(prompt, each.answer.ids or ()))
            for row, answers in zip(rows, sampled, strict=True)
            for prompt in [encode(row.prompt)]
            for each in answers
            if each.answer.ids
        ]
        num_sampled = len(said)
        old = self._measure(said, "policy", lambda batch: token_logprobs(self._backbone, batch, self._temperature)[0])
        said = [each for each in said if each in old and self._is_close(old[each], each)]
        num_dropped = len(old) - len(said)
        values = self._measure(said, ADAPTER, lambda batch: token_values(self._backbone, self._value, batch))
        reference = self._refer([each for each in said if each in values])
        rewarded = self._reward([each for each in said if each in reference])
        kept = [each for each in said if each in rewarded]
        if not kept:
            raise NothingLearnable(num_sampled, num_dropped)
        made = _Measured(
            said=kept,
            old=[old[each] for each in kept],
            values=[values[each] for each in kept],
            reference=[reference[each] for each in kept],
            rewarded=_join([rewarded[each] for each in kept]),
        )
        counts = {
            "num_answers": float(len(kept)),
            "dropped": float(num_dropped),
            "failed": float(num_sampled - num_dropped - len(kept)),
            "num_sampled": float(num_sampled),
        }
        return _finish(made, self._section, kl_coefficient, counts)

    def _is_close(self, old: Tensor, said: _Said) -> bool:
        drawn = torch.tensor(said.sampled.logprobs)
        if drawn.shape != old.shape:
            return False
        mask = torch.ones(1, len(old), dtype=torch.bool)
        return bool(keep_close(old[None], drawn[None], mask, self._section.max_answer_ratio))

    def _measure(
        self, said: Sequence[_Said], adapter: str | None, compute: Callable[[Batch], Tensor]
    ) -> dict[_Said, Tensor]:
        """What `compute` says of each answer's tokens, (tokens,) on the CPU; those that fail are missing."""
        backbone = self._backbone
        found: dict[_Said, Tensor] = {}
        shared = MOST_SHARED if backbone.shares_prompt else 1
        groups = [[said[i] for i in group] for group in group_by_prompt([each.encoded for each in said], shared)]

        def run(chosen: Sequence[int]) -> None:
            answers = [each for i in chosen for each in groups[i]]
            batch = backbone.make_batch(
                [(groups[i][0].encoded.prompt, [each.encoded.answer for each in groups[i]]) for i in chosen]
            )
            values = compute(batch).cpu()
            if not torch.isfinite(values).all():
                raise NotFinite("a log-probability or value is not finite")
            found.update(zip(answers, _split(values, answers), strict=True))

        lengths = [count_row(group[0].encoded.prompt, [each.encoded.answer for each in group]) for group in groups]
        with backbone.adapters.inferring(adapter):
            for chosen in plan_batches(lengths, backbone.token_budget):
                run_isolated(chosen, run, lambda i, error: self._blame(groups[i][0].row.event_id, error))
        return found

    def _refer(self, said: Sequence[_Said]) -> dict[_Said, Tensor]:
        """Log-probabilities under the reference."""
        if self._references is None:
            return self._measure(
                said, self._reference, lambda batch: token_logprobs(self._backbone, batch, self._temperature)[0]
            )
        found: dict[_Said, Tensor] = {}
        flat = self._references([each.encoded for each in said]).cpu()
        for each, logprobs in zip(said, _split(flat, said), strict=True):
            if torch.isfinite(logprobs).all():
                found[each] = logprobs
            else:
                self._blame(each.row.event_id, NotFinite("a reference log-probability is not finite"))
        return found

    def _reward(self, said: Sequence[_Said]) -> dict[_Said, Rewarded]:
        """What each answer is worth. Where no prompt's answers can be rewarded no prompt is to blame: raises the error."""
        found: dict[_Said, Rewarded] = {}
        failed: list[tuple[_Said, Exception]] = []

        def run(some: Sequence[_Said]) -> None:
            rewarded = self._rewards.reward([Sample(e.row.prompt, e.sampled.answer, e.encoded) for e in some])
            if not all(map(math.isfinite, rewarded.totals)):
                raise NotFinite("a reward is not finite")
            for i, each in enumerate(some):
                found[each] = Rewarded([rewarded.totals[i]], {name: [of[i]] for name, of in rewarded.parts.items()})

        run_isolated(said, run, lambda each, error: failed.append((each, error)))
        if not found and len({each.row.event_id for each, _ in failed}) > 1:
            raise failed[0][1]
        for each, error in failed:
            self._blame(each.row.event_id, error)
        return found


@dataclass(frozen=True)
class _Measured:
    """Answers, with log-probabilities, values and reference log-probabilities, (tokens,) each."""

    said: list[_Said]
    old: list[Tensor]
    values: list[Tensor]
    reference: list[Tensor]
    rewarded: Rewarded


def _finish(made: _Measured, section: PpoSection, kl_coefficient: float, counts: dict[str, float]) -> Experience:
    """Rewards of tokens, then advantages. The score stands at the last token; every token pays for its share of KL."""
    lengths = [len(old) for old in made.old]
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    old, values, reference = (_pad(each, mask) for each in (made.old, made.values, made.reference))
    drawn = _pad([torch.tensor(each.sampled.logprobs) for each in made.said], mask)
    kl = k1(old, reference)
    is_finished = torch.tensor([each.sampled.answer.is_finished for each in made.said])
    rewards = -kl_coefficient * kl
    scores = torch.tensor(made.rewarded.totals) - section.missing_end_penalty * ~is_finished
    rewards[torch.arange(len(lengths)), mask.sum(1) - 1] += scores
    advantages, returns = estimate_advantages(rewards, values, mask, section.gamma, section.lam)
    weights = importance_weights(old, drawn, section.max_importance_weight)
    figures = {
        **made.rewarded.figures(),
        **counts,
        "kl": kl.sum(1).mean().item(),
        "kl_coefficient": kl_coefficient,
        "finished": is_finished.float().mean().item(),
        "answer_tokens": sum(lengths) / len(lengths),
        "importance_weight": weights[mask].mean().item(),
        "explained_variance": explained_variance(values[mask], returns[mask]),
        "value": values[mask].mean().item(),
        "return": returns[mask].mean().item(),
    }
    return Experience(
        event_ids=tuple(each.row.event_id for each in made.said),
        answers=tuple(each.encoded for each in made.said),
        old=old[mask],
        values=values[mask],
        weights=weights[mask],
        advantages=(whiten(advantages, mask) if section.whiten else advantages)[mask],
        returns=returns[mask],
        figures=figures,
    )


def _split(flat: Tensor, said: Sequence[_Said]) -> tuple[Tensor, ...]:
    """Each answer's part of a tensor over tokens."""
    return torch.split(flat, [len(each.encoded.answer) for each in said])


def _pad(rows: Sequence[Tensor], mask: Tensor) -> Tensor:
    padded = torch.zeros(mask.shape)
    padded[mask] = torch.cat(list(rows))
    return padded


def _join(each: Sequence[Rewarded]) -> Rewarded:
    totals = [total for one in each for total in one.totals]
    return Rewarded(totals, {name: [v for one in each for v in one.parts[name]] for name in each[0].parts})


def _list_places(lengths: Sequence[int]) -> list[range]:
    ends = [0]
    for length in lengths:
        ends.append(ends[-1] + length)
    return [range(start, end) for start, end in pairwise(ends)]

"""The reward model: what people prefer, learnt from their choices as they come.

Score = w . style + head(frozen hidden states) + adapter. Style's weights are fitted anew from all choices, so the first fifty
count; the heads learn what style leaves unexplained, and how much they are believed follows from what they foresaw. Ties count, the
place an answer was shown in is fitted and left out of scores. What cannot be learnt from is rejected and changes nothing for the
others. Weights of persons are math/weights'; which rows come, and how often, is the caller's.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn import reward_state
from trainer.learn.loop import Loop, ParameterGroup
from trainer.learn.outcomes import name_group
from trainer.learn.prequential import Foreseen, Prequential
from trainer.learn.reservoir import Reservoir, Row
from trainer.learn.reward_adapter import AdapterPart, Lesson
from trainer.learn.reward_inputs import Read, compute_frozen_states, describe_answers, read_answer, read_pair
from trainer.learn.reward_mix import Mix, fit_mix
from trainer.math.choices import (
    FIRST,
    RATED,
    SECOND,
    TIE,
    ChoiceFit,
    Choices,
    Prior,
    choice_losses,
    fit_choices,
    win_probabilities,
)
from trainer.model.heads import EpistemicHead, Standardiser
from trainer.settings import RewardSection
from trainer.text.rejected import Reject, log_rejected
from trainer.text.style import FEATURES, SPREADS
from trainer.text.transcript import EncodedAnswer, EncodedPair

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone
    from trainer.text.pairs import Pair, Rated

PART = "reward"
KINDS = {"first": FIRST, "second": SECOND, "tie": TIE, "both_bad": TIE}
Progress = Callable[[int, dict[str, float]], None]
"""Called with how many pairs were learnt from so far, and figures."""


@dataclass(frozen=True)
class Scores:
    """draws: (answers, K); mean and std over draws, (answers,); `cautious` is mean - lambda std."""

    draws: Tensor
    mean: Tensor
    std: Tensor
    cautious: Tensor

    def minus(self, other: Scores, pessimism: float = 1.0) -> Scores:
        """Of the difference, which is taken per draw: what two answers share is no doubt about which is better."""
        return make_scores(self.draws - other.draws, pessimism)


def make_scores(draws: Tensor, pessimism: float) -> Scores:
    """Scores of draws, (answers, K)."""
    mean, std = draws.mean(1), draws.std(1)
    return Scores(draws, mean, std, mean - pessimism * std)


@lru_cache(maxsize=8192)
def bootstrap_weights(event_id: str, num_draws: int) -> tuple[float, ...]:
    """Exponential weights, one a draw, fixed by the event: a replayed pair weighs what it weighed (Rubin 1981)."""
    digest = hashlib.shake_128(event_id.encode()).digest(4 * num_draws)
    draws = [int.from_bytes(digest[4 * draw : 4 * draw + 4], "big") for draw in range(num_draws)]
    return tuple(-math.log((draw + 0.5) / 2**32) for draw in draws)


@dataclass(frozen=True)
class Measured:
    """Parts of the scores of some rows' answers, all (answers,) but features (answers, F) and doubts (answers, K)."""

    features: Tensor
    head: Tensor
    doubts: Tensor
    adapter: Tensor


class RewardModel:
    """Learns from pairs and rated answers, and scores answers under one adapter.

    version counts the updates; record is what was foreseen since the first; fit holds the weights of style, nu and place.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: RewardSection | None = None,
        *,
        adapter: str = "reward",
        reject: Reject = log_rejected,
        seed: int = 0,
    ) -> None:
        self.backbone, self.settings, self.seed = backbone, settings or RewardSection(), seed
        self._reject = reject
        section, device = self.settings, backbone.device
        self.version = 0
        self.record = Prequential(section.window)
        self.mix = Mix()
        self.standardiser = Standardiser(2 * backbone.hidden_size, section.hidden_features, seed).to(device)
        size = self.standardiser.size
        self.head = EpistemicHead(size, section.num_draws, section.head_width, seed).to(device)
        self.loop = Loop([ParameterGroup("head", dict(self.head.named_parameters()), section.head_lr)], None)
        self.adapter = AdapterPart(backbone, adapter, section, seed)
        self.reservoir = Reservoir(len(FEATURES), size, section.capacity, section.hidden_capacity, seed)
        self.fit = self._fit_style()
        self.centre = torch.zeros(section.num_draws)
        noise = torch.randn(section.num_draws, len(FEATURES), generator=torch.Generator().manual_seed(seed))
        noise -= noise.mean(0)  # the mean over draws is the estimate itself
        self._noise = noise * math.sqrt(section.num_draws / (section.num_draws - 1))

    # Learning

    def update(
        self,
        new: Sequence[Pair],
        replay: Sequence[Pair],
        weights: Sequence[float] | None = None,
        rated: Sequence[Rated] = (),
    ) -> dict[str, float]:
        """Foresee what is new, then learn from it and from what is replayed. weights: of new and replay, in that order.

        Returns figures (DESCRIBED in docs/operations); {}, and nothing was changed, if nothing could be learnt from.
        """
        pairs = [*new, *replay]
        given = [pair.weight for pair in pairs] if weights is None else list(weights)
        is_new = {pair.event_id for pair in new}
        learnt = self._take_in(pairs, given, is_new, rated)
        if not learnt:
            return {}
        ids = [row.event_id for row in learnt]
        loss = self._train_heads(ids)
        encoded = [row for row in learnt if len(row.answers) == 2]
        adapter_loss = self._train_adapter(encoded, self.adapter.max_pairs)
        self._finish()
        return {**self.describe(), "loss": loss, "loss_adapter": adapter_loss, "num_pairs": float(len(encoded))}

    def learn_in_bulk(
        self, chunks: Iterable[Sequence[Pair]], progress: Progress | None = None, *, total: int | None = None
    ) -> dict[str, float]:
        """One pass over many pairs, a chunk (some hundreds to thousands) in memory at a time; one version.

        total: pairs in all, if known. All pairs are fitted by style; hidden states are computed for as many as are kept, evenly
        spread where total is known. Returns figures; {} if nothing could be learnt from.
        """
        num_pairs, share = 0, 1.0
        if total:
            share = min(1.0, self.settings.hidden_capacity / total)
        budget = self.settings.bulk_adapter_pairs if self.adapter.max_pairs else 0
        for chunk in chunks:
            learnt = self._take_in(chunk, [pair.weight for pair in chunk], {p.event_id for p in chunk}, (), share)
            if not learnt:
                continue
            num_pairs += len(learnt)
            self._train_heads([row.event_id for row in learnt])
            num_lessons = min(budget, self.adapter.max_pairs if not total else math.ceil(budget * len(chunk) / total))
            self._train_adapter(learnt, num_lessons)
            self.mix = fit_mix(self.record, self.fit.log_nu, self.adapter.has_learnt)
            if progress is not None:
                progress(num_pairs, {"accuracy_prequential": self.record.accuracy})
        if not num_pairs:
            return {}
        self._finish()
        return {**self.describe(), "num_pairs": float(num_pairs)}

    def _take_in(
        self,
        pairs: Sequence[Pair],
        weights: Sequence[float],
        is_new: set[str],
        rated: Sequence[Rated],
        hidden_share: float = 1.0,
    ) -> list[Read]:
        """Read rows, foresee those that are new, keep them and fit style. Returns what can be learnt from."""
        weight_of = {pair.event_id: weight for pair, weight in zip(pairs, weights, strict=True)}
        usable = [pair for pair in pairs if weight_of[pair.event_id] > 0 and pair.preferred in KINDS]
        encoded = self.backbone.transcriber.encode_pairs(usable, PART, self._reject)
        answers = self._encode_rated(rated)
        reads = [*map(read_pair, encoded), *(read for read, _ in answers)]
        rejected: set[str] = set()
        wanted = [
            r for r in reads if self.reservoir.wants_hidden(r.event_id) and _draw_share(r.event_id) < hidden_share
        ]
        states = self._compute_states(wanted, rejected)
        kept = [row for row in reads if row.event_id not in rejected]
        features = {row.event_id: describe_answers(self.backbone, row) for row in kept}
        if len(self.reservoir):  # before that it knows nothing
            news = [each for each in encoded if each.pair.event_id in is_new and each.pair.event_id in states]
            self.record.add(self._foresee(news, features, states))
        rows = [
            self._make_row(each.pair, weight_of[each.pair.event_id], features, states)
            for each in encoded
            if each.pair.event_id in features
        ]
        rows += [self._make_rated_row(each, features, states) for read, each in answers if read.event_id in features]
        self.reservoir.add(rows)
        if kept:
            self.fit = self._fit_style()
        return kept

    def _encode_rated(self, rated: Sequence[Rated]) -> list[tuple[Read, Rated]]:
        encoded = []
        for each in rated:
            try:
                answer = self.backbone.transcriber.encode_answer(each.prompt, each.answer)
            except Exception as error:  # templates and tokenizers raise what they like
                self._reject(each.event_id, PART, error)
            else:
                encoded.append((read_answer(each.event_id, answer, each.answer.text), each))
        return encoded

    def _compute_states(self, rows: Sequence[Read], rejected: set[str]) -> dict[str, Tensor]:
        """Standardised frozen states (answers, size) by event id."""

        def fail(row: Read, error: Exception) -> None:
            if not self.backbone.is_sound(self.adapter.adapter):
                raise error
            rejected.add(row.event_id)
            self._reject(row.event_id, PART, error)

        raw = compute_frozen_states(self.backbone, rows, fail)
        if raw and not self.standardiser.is_fixed:
            everything = torch.cat(list(raw.values()))
            self.standardiser.fix(everything.to(self.backbone.device))
            self.adapter.standardiser.fix(everything[:, : self.backbone.hidden_size].to(self.backbone.device))
        return {rows[i].event_id: self.standardiser(state.to(self.backbone.device)).cpu() for i, state in raw.items()}

    def _make_row(
        self, pair: Pair, weight: float, features: dict[str, list[tuple[float, ...]]], states: dict[str, Tensor]
    ) -> Row:
        first, second = features[pair.event_id]
        margin = self.settings.margin * (pair.strength or 0.0)
        return Row(
            event_id=pair.event_id, user=pair.user, kind=KINDS[pair.preferred], first=first, second=second,
            hidden=states.get(pair.event_id), weight=weight, margin=margin,
        )  # fmt: skip

    def _make_rated_row(
        self, rated: Rated, features: dict[str, list[tuple[float, ...]]], states: dict[str, Tensor]
    ) -> Row:
        hidden = states.get(rated.event_id)
        return Row(
            event_id=rated.event_id, user=name_group(rated), kind=RATED, first=features[rated.event_id][0], second=None,
            hidden=None if hidden is None else torch.cat([hidden, torch.zeros_like(hidden)]),
            weight=rated.weight * self.settings.rated_weight, value=rated.value,
        )  # fmt: skip

    def _fit_style(self) -> ChoiceFit:
        prior = Prior(weight=[self.settings.style_prior * spread for spread in SPREADS])
        return fit_choices(self.reservoir.choices(), prior, smoothing=self.settings.label_smoothing)

    def _train_heads(self, event_ids: Sequence[str]) -> float:
        """Steps on rows with hidden states, half of them of this update; returns the mean loss of the point."""
        everything, rows = self.reservoir.places_with_hidden(), self.reservoir.choices()
        current = self.reservoir.find(event_ids)
        current = current[self.reservoir.slots[current] >= 0]
        if not len(current):
            return 0.0
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.loop.step_number)
        half = min(self.settings.head_batch_size // 2, len(everything))
        losses = []
        for _ in range(self.settings.head_steps):
            drawn = [pool[torch.randint(len(pool), (half,), generator=generator)] for pool in (current, everything)]
            places = torch.cat(drawn)
            figures = self.loop.step([lambda places=places: self._compute_loss(places, rows, len(everything))])  # type: ignore[misc]
            losses.append(figures["loss_point"])
        return sum(losses) / max(1, len(losses))

    def _compute_loss(self, places: Tensor, everything: Choices, num_rows: int) -> tuple[Tensor, dict[str, float]]:
        """Weighted loss of the point and of every draw, each against its prior; style's part is given."""
        device, num_draws = self.backbone.device, self.settings.num_draws
        rows = everything.pick(places)
        style = (rows.features @ self.fit.weights).to(device)
        rows = rows.to_device(device)
        point, doubts = self.head(self.reservoir.hidden_of(places).to(device))  # (rows, 2), (rows, 2, draws)
        is_pair = (rows.kinds != RATED).float()
        led = point[:, 0] - is_pair * point[:, 1]
        doubted = doubts[:, 0] - is_pair[:, None] * doubts[:, 1]
        known = {
            "first_place": point.new_tensor(self.fit.first_place),
            "log_nu": point.new_tensor(self.fit.log_nu),
            "rated_intercept": point.new_tensor(self.fit.rated_intercept),
            "smoothing": self.settings.label_smoothing,
        }
        losses = choice_losses(style + led, rows, **known)
        draw_losses = choice_losses((style + led.detach())[:, None] + doubted, rows, **known)
        boots = torch.tensor(
            [bootstrap_weights(self.reservoir.ids[i], num_draws) for i in places.tolist()], device=device
        )
        total = rows.weights.sum().clamp(min=1e-6)
        centred = self.settings.centre_weight * is_pair * point.sum(1).square()
        of_point = (rows.weights * (losses + centred)).sum() / total
        of_draws = (rows.weights[:, None] * boots * draw_losses).sum() / total
        loss = of_point + of_draws + self.head.penalty().sum() / num_rows
        return loss, {"loss_point": of_point.item()}

    def _train_adapter(self, rows: Sequence[Read], max_pairs: int) -> float:
        """One pass over at most max_pairs of the rows that are kept, in an order that the version fixes."""
        ordered = sorted(rows, key=lambda row: hashlib.sha256(f"{self.version}{row.event_id}".encode()).digest())
        places = {row.event_id: int(place) for row in ordered for place in self.reservoir.find([row.event_id])}
        chosen = [r for r in ordered if r.event_id in places and self.reservoir.slots[places[r.event_id]] >= 0][
            :max_pairs
        ]
        if not chosen:
            return 0.0
        at = torch.tensor([places[row.event_id] for row in chosen])
        taken = self.reservoir.choices().pick(at)
        with torch.no_grad():
            point, _ = self.head(self.reservoir.hidden_of(at).to(self.backbone.device))
        offsets = taken.features @ self.fit.weights + self.mix.head * (point[:, 0] - point[:, 1]).cpu()
        rejected: list[str] = []

        def fail(row: Read, error: Exception) -> None:
            rejected.append(row.event_id)
            self._reject(row.event_id, PART, error)

        loss = self.adapter.train(Lesson(chosen, offsets, taken, self.fit.first_place, self.fit.log_nu), fail)
        self.reservoir.drop(rejected)
        return loss

    def _finish(self) -> None:
        """Believe each part as far as it foresaw, count the version, and put the mean score of what is known at 0."""
        self.mix = fit_mix(self.record, self.fit.log_nu, self.adapter.has_learnt)
        self.version += 1
        places = self.reservoir.places_with_hidden()[-256:]
        if len(places):
            with torch.no_grad():
                point, doubts = self.head(self.reservoir.hidden_of(places)[:, 0].to(self.backbone.device))
            features = self.reservoir.features[places, 0]
            measured = Measured(features, point.cpu(), doubts.cpu(), torch.zeros(len(places)))
            self.centre = self._draw(measured).mean(0)

    def forget(self, event_ids: Iterable[str]) -> None:
        """Leave rows out of every later fit: of a person who asked for it, say."""
        self.reservoir.drop(event_ids)

    # Foreseeing and scoring

    def _foresee(
        self, encoded: Sequence[EncodedPair], features: dict[str, list[tuple[float, ...]]], states: dict[str, Tensor]
    ) -> list[Foreseen]:
        """What the model as it is says of pairs that it has not learnt from."""
        rows = [(read_pair(each), each.pair) for each in encoded]
        measured = self._measure([read for read, _ in rows], features, states)
        parts = {name: values.view(-1, 2) for name, values in self._list_parts(measured).items()}
        return [
            Foreseen(
                event_id=pair.event_id, preferred=pair.preferred, app=pair.app, user=pair.user, tags=dict(pair.prompt.tags),
                logit=_logit(sum((by[i, 0] - by[i, 1]).item() * self.mix.share(name) for name, by in parts.items()), self.fit.log_nu),
                parts={name: (by[i, 0] - by[i, 1]).item() for name, by in parts.items()},
            )
            for i, (_, pair) in enumerate(rows)
        ]  # fmt: skip

    def _list_parts(self, measured: Measured) -> dict[str, Tensor]:
        return {"style": measured.features @ self.fit.weights, "head": measured.head, "adapter": measured.adapter}

    def _measure(
        self, rows: Sequence[Read], features: dict[str, list[tuple[float, ...]]], states: dict[str, Tensor]
    ) -> Measured:
        """Parts of every answer's score, row after row."""
        if not rows:
            none = torch.zeros(0)
            return Measured(torch.zeros(0, len(FEATURES)), none, torch.zeros(0, self.settings.num_draws), none)
        with torch.no_grad():
            stacked = torch.cat([states[row.event_id] for row in rows]).to(self.backbone.device)
            point, doubts = self.head(stacked)
        adapted = self.adapter.score(rows, _raise) if self.adapter.has_learnt and self.mix.adapter > 0 else {}
        blank = [torch.zeros(len(row.answers)) for row in rows]
        return Measured(
            features=torch.tensor([each for row in rows for each in features[row.event_id]]),
            head=point.cpu(),
            doubts=doubts.cpu(),
            adapter=torch.cat([adapted.get(i, zeros) for i, zeros in enumerate(blank)]),
        )

    def _draw(self, measured: Measured) -> Tensor:
        """Scores (answers, K), not centred: their mean over draws is the estimate."""
        mean = sum(values * self.mix.share(name) for name, values in self._list_parts(measured).items())
        root = torch.linalg.cholesky(
            self.fit.covariance.double() + 1e-9 * torch.eye(len(FEATURES), dtype=torch.float64)
        )
        of_style = measured.features @ root.float() @ self._noise.T
        of_heads = measured.doubts - measured.doubts.mean(1, keepdim=True)
        return torch.as_tensor(mean)[:, None] + of_style + of_heads

    def _score_rows(self, rows: Sequence[Read], fail: Callable[[Read, Exception], None]) -> tuple[list[Read], Tensor]:
        """The rows that can be scored, and draws (answers, K) of theirs."""
        raw = compute_frozen_states(self.backbone, rows, fail)
        readable = [rows[i] for i in sorted(raw)]
        states = {
            rows[i].event_id: self.standardiser(raw[i].to(self.backbone.device)).cpu().half().float() for i in raw
        }
        features = {row.event_id: describe_answers(self.backbone, row) for row in readable}
        return readable, self._draw(self._measure(readable, features, states)) - self.centre

    def score(self, answers: Sequence[EncodedAnswer], texts: Sequence[str]) -> Scores:
        """Scores of answers whose texts are given beside their ids; the mean of what was learnt from is about 0.

        Raises NotFinite if one cannot be scored.
        """
        rows = [read_answer(str(i), a, text) for i, (a, text) in enumerate(zip(answers, texts, strict=True))]
        _, draws = self._score_rows(rows, _raise)
        return make_scores(draws, self.settings.pessimism)

    def predict(self, pairs: Sequence[Pair]) -> list[float]:
        """P(first | one of them is preferred), place left out; .5 for a pair that cannot be scored, which is rejected."""
        found = self._compare(pairs)
        return [
            win_probabilities(found[p.event_id].mean(), self.fit.log_nu).item() if p.event_id in found else 0.5
            for p in pairs
        ]

    def accuracy(self, pairs: Sequence[Pair]) -> tuple[int, int]:
        """(correct, total) over decisive pairs; the place an answer was shown in plays no part."""
        decisive = [pair for pair in pairs if pair.is_decisive]
        found = self._compare(decisive)
        led = [(found[p.event_id].mean().item(), p.preferred == "first") for p in decisive if p.event_id in found]
        return sum(lead != 0 and (lead > 0) == is_first for lead, is_first in led), len(led)

    def _compare(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Draws (K,) of the first answer's score less the second's, by event id."""
        encoded = self.backbone.transcriber.encode_pairs(pairs, PART, self._reject)
        rows, draws = self._score_rows(
            [read_pair(each) for each in encoded], lambda row, error: self._reject(row.event_id, PART, error)
        )
        differences = draws.view(-1, 2, self.settings.num_draws)
        return {row.event_id: each[0] - each[1] for row, each in zip(rows, differences, strict=True)}

    # For operators, and for the disk

    def describe_features(self) -> dict[str, float]:
        """What style is worth to people here: the weight of each feature, positive if it is liked."""
        return dict(zip(FEATURES, self.fit.weights.tolist(), strict=True))

    def describe(self) -> dict[str, float]:
        """Figures of the model as it is."""
        right, total = self.record.count
        style_right, _ = self.record.count_part("style")
        calibration = self.record.calibrate()
        return {
            **{f"taste_{name}": weight for name, weight in self.describe_features().items()},
            "nu": math.exp(self.fit.log_nu),
            "first_place": self.fit.first_place,
            "accuracy_prequential": right / total if total else 0.5,
            "accuracy_style_alone": style_right / total if total else 0.5,
            "num_foreseen": float(total),
            "temperature": calibration.temperature,
            "calibration_error": calibration.ece,
            "head_share": self.mix.head,
            "adapter_share": self.mix.adapter,
        }

    def save(self, out_dir: str | Path) -> None:
        """Writes all that the next update needs: a model that is loaded goes on in the same bits."""
        reward_state.save(self, Path(out_dir))

    def load(self, path: str | Path) -> None:
        """Takes up where `save` left off. Whatever it raises (OSError, ValueError, AdapterMismatch), nothing was changed."""
        reward_state.load(self, Path(path))


def _draw_share(event_id: str) -> float:
    """A number from 0 to 1 that the id fixes."""
    return int.from_bytes(hashlib.sha256(f"share-{event_id}".encode()).digest()[:4], "big") / 2**32


def _logit(difference: float, log_nu: float) -> float:
    chance = win_probabilities(torch.tensor(difference, dtype=torch.float64), log_nu).item()
    chance = min(max(chance, 1e-9), 1 - 1e-9)
    return math.log(chance / (1 - chance))


def _raise(row: Read, error: Exception) -> None:
    raise error

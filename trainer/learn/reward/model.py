"""The reward model: what people prefer, learnt from their choices as they come.

Score = w . style + head(frozen hidden states) + adapter. Style's weights are fitted anew from all choices, so the first fifty
count; the heads learn what style leaves unexplained, and how much they are believed follows from what they foresaw. Ties count, the
place an answer was shown in is fitted and left out of scores. What cannot be learnt from is rejected and changes nothing for the
others. All that is kept is weighed anew for every fit (math/weights); which rows come, and how often, is the caller's.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainer.learn.reward.adapter import AdapterPart, Lesson
from trainer.learn.reward.head import HeadPart
from trainer.learn.reward.inputs import Read, compute_frozen_states, describe_answers, read_answer, read_pair
from trainer.learn.reward.mix import Mix, fit_mix
from trainer.learn.reward.prequential import Foreseen, Prequential, find_reliability
from trainer.learn.reward.reservoir import Key, Reservoir
from trainer.learn.reward.rows import KINDS, RowMaker, key_pair, key_rated
from trainer.learn.reward.scores import Measured, Scores, make_scores
from trainer.learn.reward.state import RewardState
from trainer.math.choices import ChoiceFit, Choices, Prior, fit_choices, win_probabilities
from trainer.math.weights import weigh_rows
from trainer.sections.reward import RewardSection
from trainer.text.pairs import Pair, Rated
from trainer.text.rejected import Reject, log_rejected
from trainer.text.style import FEATURES, SPREADS
from trainer.text.transcript import EncodedAnswer, EncodedPair

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

PART = "reward"
BULK_FORESEEN = 64  # of a chunk: the record's window holds no more than some hundred
Progress = Callable[[int, dict[str, float]], None]
"""Called with how many rows were learnt from so far, and figures."""


class RewardModel(RewardState):
    """Learns from pairs and rated answers, and scores answers under one adapter.

    version counts the updates; record is what was foreseen since the first; fit holds the weights of style, nu and place.
    half_life_s: rows count by the reliability of their person, by age (0: age does not count) and under the caps; None: by their own
    weights alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        settings: RewardSection | None = None,
        *,
        adapter: str = "reward",
        reject: Reject = log_rejected,
        seed: int = 0,
        half_life_s: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.backbone, self.settings, self.seed = backbone, settings or RewardSection(), seed
        self._reject, self._half_life_s, self.now = reject, half_life_s, now
        section = self.settings
        self.version = 0
        self.record = Prequential(section.window)
        self.mix = Mix()
        self.head = HeadPart(backbone, section, seed)
        self.adapter = AdapterPart(backbone, adapter, section, seed)
        self.reservoir = Reservoir(len(FEATURES), self.head.size, section.capacity, section.hidden_capacity, seed)
        self.fit = self._fit_style(self.reservoir.choices())
        self.centre = torch.zeros(section.num_draws)
        noise = torch.randn(section.num_draws, len(FEATURES), generator=torch.Generator().manual_seed(seed))
        noise -= noise.mean(0)  # the mean over draws is the estimate itself
        self._noise = noise * math.sqrt(section.num_draws / (section.num_draws - 1))

    # Learning

    def update(
        self,
        new: Sequence[Pair],
        replay: Sequence[Pair],
        rated: Sequence[Rated] = (),
    ) -> dict[str, float]:
        """Foresee what is new, then learn from it and from what is replayed. An edit is learnt from and not foreseen.

        Returns figures (DESCRIBED in docs/operations); {}, and nothing was changed, if nothing could be learnt from.
        """
        learnt, rows = self._take_in([*new, *replay], [key_pair(pair) for pair in new if not pair.is_edit], rated)
        if not learnt:
            return {}
        loss = self.head.train(self.reservoir, rows, self.fit, [row.key for row in learnt])
        encoded = [row for row in learnt if len(row.answers) == 2]
        adapter_loss = self._train_adapter(encoded, rows, self.adapter.max_pairs)
        self._finish()
        return {**self.describe(), "loss": loss, "loss_adapter": adapter_loss, "num_pairs": float(len(encoded))}

    def learn_in_bulk(
        self, chunks: Iterable[Sequence[Pair | Rated]], progress: Progress | None = None, *, total: int | None = None
    ) -> dict[str, float]:
        """One pass over many rows, a chunk (some hundreds to thousands) in memory at a time; one version.

        total: rows in all, if known. All are fitted by style; hidden states are computed for as many as are kept, evenly
        spread where total is known. Returns figures; {} if nothing could be learnt from.
        """
        num_pairs, num_rows, share = 0, 0, 1.0
        if total:
            share = min(1.0, self.settings.hidden_capacity / total)
        budget = self.settings.bulk_adapter_pairs if self.adapter.max_pairs else 0
        for chunk in chunks:
            pairs = [row for row in chunk if not isinstance(row, Rated)]
            rated = [row for row in chunk if isinstance(row, Rated)]
            new = [key_pair(pair) for pair in pairs if not pair.is_edit]
            learnt, rows = self._take_in(pairs, new, rated, share, BULK_FORESEEN)
            if not learnt:
                continue
            encoded = [row for row in learnt if len(row.answers) == 2]
            num_rows, num_pairs = num_rows + len(learnt), num_pairs + len(encoded)
            self.head.train(self.reservoir, rows, self.fit, [row.key for row in learnt])
            num_lessons = min(budget, self.adapter.max_pairs if not total else math.ceil(budget * len(pairs) / total))
            self._train_adapter(encoded, rows, num_lessons)
            self.mix = fit_mix(self.record, self.fit.log_nu, self.adapter.has_learnt)
            if progress is not None:
                progress(num_rows, {"accuracy_prequential": self.record.accuracy})
        if not num_rows:
            return {}
        self._finish()
        return {**self.describe(), "num_pairs": float(num_pairs)}

    def _take_in(
        self,
        pairs: Sequence[Pair],
        new: Collection[Key],
        rated: Sequence[Rated],
        hidden_share: float = 1.0,
        max_foreseen: int | None = None,
    ) -> tuple[list[Read], Choices]:
        """Read rows, foresee those that are named as new, keep them and fit style.

        Returns what can be learnt from, and all that is kept.
        """
        usable = [pair for pair in pairs if pair.weight > 0 and pair.preferred in KINDS]
        encoded = self.backbone.transcriber.encode_pairs(usable, PART, self._reject)
        answers = self._encode_rated(rated)
        reads = [*map(read_pair, encoded), *(read for read, _ in answers)]
        rejected: set[Key] = set()
        wanted = [r for r in reads if self.reservoir.wants_hidden(r.key) and _draw_share(r.key.event_id) < hidden_share]
        states = self._compute_states(wanted, rejected)
        kept = [row for row in reads if row.key not in rejected]
        features = self._describe(kept)
        if len(self.reservoir):  # before that it knows nothing
            is_new = frozenset(new)
            news = [each for each in encoded if (key := key_pair(each.pair)) in is_new and key in states]
            self.record.add(self._foresee(news[:max_foreseen], features, states))
        maker = RowMaker(self.settings, features, states)
        self.reservoir.add(maker.of_pair(each.pair) for each in encoded if key_pair(each.pair) in features)
        self.reservoir.add(maker.of_rated(each) for read, each in answers if read.key in features)
        rows = self.weigh_kept()
        if kept:
            self.fit = self._fit_style(rows)
        return kept, rows

    def weigh_kept(self) -> Choices:
        """All kept rows with their weights as of now, and not as of when they came.

        Uneven weights tell less than even ones: their sum is that of so many even rows as tell as much (Kish 1965), so that the fit is
        no surer of a few new rows for the many old ones beside them.
        """
        if self._half_life_s is None:
            return self.reservoir.choices()
        described = self.reservoir.describe(self.now())
        reliability = find_reliability(self.record)
        weights = torch.tensor(weigh_rows(described, reliability=reliability, half_life_s=self._half_life_s))
        own = torch.tensor([row.weight for row in described]).clamp(min=1e-9)
        scale = weights.sum() / (weights.square() / own).sum().clamp(min=1e-9)
        return self.reservoir.choices(scale * weights)

    def _encode_rated(self, rated: Sequence[Rated]) -> list[tuple[Read, Rated]]:
        encoded = []
        for each in rated:
            try:
                answer = self.backbone.transcriber.encode_answer(each.prompt, each.answer)
            except Exception as error:  # templates and tokenizers raise what they like
                self._reject(each.event_id, PART, error)
            else:
                encoded.append((read_answer(key_rated(each), answer, each.answer.shown), each))
        return encoded

    def _compute_states(self, rows: Sequence[Read], rejected: set[Key]) -> dict[Key, Tensor]:
        """Standardised frozen states (answers, size) by row."""

        def fail(row: Read, error: Exception) -> None:
            if not self.backbone.is_sound(self.adapter.adapter):
                raise error
            rejected.add(row.key)
            self._reject(row.key.event_id, PART, error)

        raw = compute_frozen_states(self.backbone, rows, fail)
        if not raw:
            return {}
        everything = torch.cat(list(raw.values()))
        self.adapter.standardiser.fix(everything[:, : self.backbone.hidden_size].to(self.backbone.device))
        scaled = torch.split(self.head.standardise(everything), [len(state) for state in raw.values()])
        return {rows[number].key: states for number, states in zip(raw, scaled, strict=True)}

    def _fit_style(self, rows: Choices) -> ChoiceFit:
        prior = Prior(weight=[self.settings.style_prior * spread for spread in SPREADS])
        return fit_choices(rows, prior, smoothing=self.settings.label_smoothing)

    def _train_adapter(self, pairs: Sequence[Read], rows: Choices, max_pairs: int) -> float:
        """One pass over at most max_pairs of the pairs that are kept, in an order that the version fixes. rows: of the reservoir."""
        ordered = sorted(pairs, key=lambda row: hashlib.sha256(f"{self.version}{row.key.event_id}".encode()).digest())
        places = {row.key: int(place) for row in ordered for place in self.reservoir.find([row.key])}
        may_teach = (self.reservoir.slots[: len(rows)] >= 0) & (rows.weights > 0)  # what is old enough weighs nothing
        chosen = [row for row in ordered if row.key in places and may_teach[places[row.key]]][:max_pairs]
        if not chosen:
            return 0.0
        at = torch.tensor([places[row.key] for row in chosen])
        taken = rows.pick(at)
        point, _ = self.head.score(self.reservoir.hidden_of(at))
        offsets = taken.features @ self.fit.weights + self.mix.head * (point[:, 0] - point[:, 1])
        rejected: list[str] = []

        def fail(row: Read, error: Exception) -> None:
            rejected.append(row.key.event_id)
            self._reject(row.key.event_id, PART, error)

        loss = self.adapter.train(Lesson(chosen, offsets, taken, self.fit.first_place, self.fit.log_nu), fail)
        self.reservoir.drop(rejected)
        return loss

    def _finish(self) -> None:
        """Believe each part as far as it foresaw, count the version, and put the mean score of what is known at 0."""
        self.mix = fit_mix(self.record, self.fit.log_nu, self.adapter.has_learnt)
        self.version += 1
        places = self.reservoir.places_with_hidden()[-256:]
        if len(places):
            point, doubts = self.head.score(self.reservoir.hidden_of(places)[:, 0])
            measured = Measured(self.reservoir.features[places, 0], point, doubts, torch.zeros(len(places)))
            self.centre = self._draw(measured).mean(0)

    def forget(self, event_ids: Iterable[str]) -> None:
        """Leave rows out of every later fit and of the record: of a person who asked for it, say."""
        gone = set(event_ids)
        self.reservoir.drop(gone)
        self.record.drop(gone)

    def list_known(self) -> list[str]:
        """Event ids of all rows that it keeps something of."""
        return sorted({*self.reservoir.event_ids, *(row.event_id for row in self.record.everything)})

    # Foreseeing and scoring

    def _foresee(
        self, encoded: Sequence[EncodedPair], features: dict[Key, list[tuple[float, ...]]], states: dict[Key, Tensor]
    ) -> list[Foreseen]:
        """What the model as it is says of pairs that it has not learnt from."""
        rows = [(read_pair(each), each.pair) for each in encoded]
        measured = self._measure([read for read, _ in rows], features, states)
        parts = {name: values.view(-1, 2) for name, values in self._list_parts(measured).items()}
        return [
            Foreseen(
                event_id=pair.event_id, preferred=pair.preferred, app=pair.app, user=pair.user, tags=dict(pair.prompt.tags),
                may_judge=pair.may_judge,
                logit=_logit(sum((by[i, 0] - by[i, 1]).item() * self.mix.share(name) for name, by in parts.items()), self.fit.log_nu),
                parts={name: (by[i, 0] - by[i, 1]).item() for name, by in parts.items()},
            )
            for i, (_, pair) in enumerate(rows)
        ]  # fmt: skip

    def _list_parts(self, measured: Measured) -> dict[str, Tensor]:
        return {"style": measured.features @ self.fit.weights, "head": measured.head, "adapter": measured.adapter}

    def _measure(
        self, rows: Sequence[Read], features: dict[Key, list[tuple[float, ...]]], states: dict[Key, Tensor]
    ) -> Measured:
        """Parts of every answer's score, row after row."""
        if not rows:
            none = torch.zeros(0)
            return Measured(torch.zeros(0, len(FEATURES)), none, torch.zeros(0, self.settings.num_draws), none)
        point, doubts = self.head.score(torch.cat([states[row.key] for row in rows]))
        adapted = self.adapter.score(rows, _raise) if self.adapter.has_learnt and self.mix.adapter > 0 else {}
        blank = [torch.zeros(len(row.answers)) for row in rows]
        return Measured(
            features=torch.tensor([each for row in rows for each in features[row.key]]),
            head=point,
            doubts=doubts,
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
        draws: Tensor = torch.as_tensor(mean)[:, None] + of_style + of_heads
        return draws

    def _score_rows(self, rows: Sequence[Read], fail: Callable[[Read, Exception], None]) -> tuple[list[Read], Tensor]:
        """The rows that can be scored, and draws (answers, K) of theirs."""
        states = self._find_states(rows, fail)
        readable = [row for row in rows if row.key in states]
        return readable, self._draw(self._measure(readable, self._describe(readable), states)) - self.centre

    def _find_states(self, rows: Sequence[Read], fail: Callable[[Read, Exception], None]) -> dict[Key, Tensor]:
        """Frozen states (answers, size) of the rows that have any, by the scale that was learnt."""
        raw = compute_frozen_states(self.backbone, rows, fail)
        return {rows[i].key: self.head.rescale(state) for i, state in raw.items()}

    def _describe(self, rows: Sequence[Read]) -> dict[Key, list[tuple[float, ...]]]:
        """Features of style of every answer."""
        return {row.key: describe_answers(self.backbone, row) for row in rows}

    def _reject_row(self, row: Read, error: Exception) -> None:
        self._reject(row.key.event_id, PART, error)

    def score(self, answers: Sequence[EncodedAnswer], texts: Sequence[str]) -> Scores:
        """Scores of answers whose texts are given beside their ids; the mean of what was learnt from is about 0.

        Raises NotFinite if one cannot be scored.
        """
        rows = [read_answer(Key(str(i)), a, text) for i, (a, text) in enumerate(zip(answers, texts, strict=True))]
        _, draws = self._score_rows(rows, _raise)
        return make_scores(draws, self.settings.pessimism)

    def draw_scores(self, prompt: tuple[int, ...], answers: Sequence[tuple[int, ...]], texts: Sequence[str]) -> Tensor:
        """Draws (answers, K) of answers to one prompt, which is read once. Raises NotFinite if they cannot be scored."""
        _, draws = self._score_rows([Read(Key(""), prompt, tuple(answers), tuple(texts))], _raise)
        return draws

    def foresee(self, pairs: Sequence[Pair]) -> list[Foreseen]:
        """What the model as it is says of pairs that it has not learnt from; without those that cannot be scored."""
        encoded = self.backbone.transcriber.encode_pairs(pairs, PART, self._reject)
        rows = [read_pair(each) for each in encoded]
        states = self._find_states(rows, self._reject_row)
        readable = [each for each in encoded if key_pair(each.pair) in states]
        return self._foresee(readable, self._describe([row for row in rows if row.key in states]), states)

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
        rows, draws = self._score_rows([read_pair(each) for each in encoded], self._reject_row)
        differences = draws.view(-1, 2, self.settings.num_draws)
        return {row.key.event_id: each[0] - each[1] for row, each in zip(rows, differences, strict=True)}

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
            **{f"taste_sd_{name}": sd for name, sd in zip(FEATURES, self.fit.deviations, strict=True)},
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


def _draw_share(event_id: str) -> float:
    """A number from 0 to 1 that the id fixes."""
    return int.from_bytes(hashlib.sha256(f"share-{event_id}".encode()).digest()[:4], "big") / 2**32


def _logit(difference: float, log_nu: float) -> float:
    chance = win_probabilities(torch.tensor(difference, dtype=torch.float64), log_nu).item()
    chance = min(max(chance, 1e-9), 1 - 1e-9)
    return math.log(chance / (1 - chance))


def _raise(row: Read, error: Exception) -> None:
    raise error

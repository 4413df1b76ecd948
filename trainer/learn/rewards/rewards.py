"""The reward of a round: a stated sum of named parts, each with its weight and curve.

A part says how good answers are in one respect; the sum has mean 0 on an anchor set, so that a version's rewards can be compared
with another's. A part without a weight is measured and shown, and counts nothing. Does not sample, and does not train.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from trainer.learn.reward.outcomes import OutcomeModel
from trainer.learn.rewards.checkers import Checker
from trainer.text.pairs import Answer, Prompt
from trainer.text.style import split_words
from trainer.text.transcript import EncodedAnswer

if TYPE_CHECKING:
    from trainer.learn.reward.scores import Scores
    from trainer.sections.reward import RewardsSection

Curve = Callable[[float], float]
PREFERENCE = "preference"  # the part that the reward model measures


class Scorer(Protocol):
    """A reward model, as far as the preference part asks it."""

    def score(self, answers: Sequence[EncodedAnswer], texts: Sequence[str]) -> Scores: ...


@dataclass(frozen=True)
class Sample:
    """An answer that is rewarded."""

    prompt: Prompt
    answer: Answer
    encoded: EncodedAnswer


Measure = Callable[[Sequence[Sample]], Sequence[float | None]]
"""One number per sample; None where the part says nothing of it."""


def excess_curve(limit: float) -> Curve:
    """0 up to limit, then minus the logarithm of how many times it is passed: twice the length costs .69."""
    return lambda value: -math.log(max(1.0, value / limit))


def identity(value: float) -> float:
    return value


@dataclass(frozen=True)
class Part:
    """name: preference, length, harm, outcome or `checker:…`; curve: from what is measured to what is added."""

    name: str
    weight: float
    measure: Measure
    curve: Curve = identity


@dataclass(frozen=True)
class Rewarded:
    """totals: one per sample; parts: what each part added, weight and curve applied, less its mean on the anchors."""

    totals: list[float]
    parts: dict[str, list[float]]

    def figures(self) -> dict[str, float]:
        """Mean of the total and of each part, and the spread of the total."""
        means = {name: _mean(values) for name, values in self.parts.items()}
        total = _mean(self.totals)
        spread = math.sqrt(_mean([(value - total) ** 2 for value in self.totals]))
        return {"reward": total, "reward_spread": spread, **{f"reward_{name}": mean for name, mean in means.items()}}


class Rewards:
    """The sum of parts. `anchor` must be called for every version of what they measure with."""

    def __init__(self, parts: Sequence[Part]) -> None:
        names = [part.name for part in parts]
        if len(set(names)) < len(names):
            raise ValueError(f"parts of one name: {sorted(names)}")
        self.parts = list(parts)
        self.means = {part.name: 0.0 for part in parts}

    def anchor(self, samples: Sequence[Sample]) -> None:
        """Put the mean of every part on these samples, always the same ones, at 0."""
        self.means = {part.name: _mean(_apply(part, samples)) for part in self.parts}

    def reward(self, samples: Sequence[Sample]) -> Rewarded:
        """What each sample is worth. Raises what the preference part raises; checkers never raise."""
        parts = {part.name: [value - self.means[part.name] for value in _apply(part, samples)] for part in self.parts}
        return Rewarded(
            [math.fsum(values) for values in zip(*parts.values(), strict=True)] or [0.0] * len(samples), parts
        )

    def spread(self, samples: Sequence[Sample], draws: Tensor) -> Tensor:
        """The sum under each of a reward model's posterior draws, with those as its preference part; not anchored.

        draws: (samples, K), of the reward model alone. Returns the same shape.
        """
        others = [_apply(part, samples) for part in self.parts if part.name != PREFERENCE]
        added = torch.tensor([math.fsum(values) for values in zip(*others, strict=True)] or [0.0] * len(samples))
        return self.describe().get(PREFERENCE, 0.0) * draws + added[:, None].to(draws)

    def describe(self) -> dict[str, float]:
        """Weight of each part, as it is stated in a round's record."""
        return {part.name: part.weight for part in self.parts}


def _apply(part: Part, samples: Sequence[Sample]) -> list[float]:
    """What a part adds; 0 where it says nothing."""
    measured = part.measure(samples)
    return [0.0 if value is None else part.weight * part.curve(value) for value in measured]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else 0.0


# The parts that the settings name


def preference_part(model: Scorer, weight: float) -> Part:
    """The reward model's cautious score: its mean less its doubt."""

    def measure(samples: Sequence[Sample]) -> list[float]:
        scored = model.score([each.encoded for each in samples], [each.answer.text for each in samples])
        return [float(value) for value in scored.cautious]

    return Part(PREFERENCE, weight, measure)


def length_part(weight: float, max_words: int) -> Part:
    """Nothing up to max_words, then less and less."""
    return Part(
        "length",
        weight,
        lambda samples: [len(split_words(each.answer.text)) for each in samples],
        excess_curve(max_words),
    )


def harm_part(weight: float, is_harmful: Callable[[str], float]) -> Part:
    """Minus what a harm screen gives, 0 (harmless) to 1."""
    return Part(
        "harm", weight, lambda samples: [is_harmful(each.answer.text) for each in samples], lambda value: -value
    )


def checker_part(checker: Checker) -> Part:
    """What a checker gives, for prompts that it is for."""
    return Part(
        f"checker:{checker.name}",
        checker.section.weight,
        lambda samples: [checker.check(each.prompt, each.answer) for each in samples],
    )


def outcome_part(model: OutcomeModel, weight: float) -> Part:
    """How likely success is for an answer so written, .5 being what its slice has."""
    return Part("outcome", weight, lambda samples: [model.predict(each.prompt, each.answer) for each in samples])


def make_rewards(
    settings: RewardsSection,
    model: Scorer,
    checkers: Sequence[Checker] = (),
    *,
    is_harmful: Callable[[str], float] | None = None,
    outcomes: OutcomeModel | None = None,
) -> Rewards:
    """The sum that the settings state. Parts that nothing can measure are left out: harm without a screen, outcome without
    enough outcomes."""
    parts = [
        preference_part(model, settings.preference_weight),
        length_part(settings.length_weight, settings.max_words),
    ]
    if is_harmful is not None:
        parts.append(harm_part(settings.harm_weight, is_harmful))
    if outcomes is not None and outcomes.num_outcomes >= settings.min_outcomes:
        parts.append(outcome_part(outcomes, settings.outcome_weight))
    return Rewards([*parts, *map(checker_part, checkers)])

"""How the style of an answer goes with what came of it: successes and scores that apps report.

An outcome is a label of its slice (the prompt's tags): it is compared with what its slice usually has, since a hard task fails
however it is answered. A handful of weights; says nothing of causes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch

from trainer.learn.reward.reservoir import SLICE
from trainer.math.choices import RATED, Choices, Prior, fit_choices
from trainer.math.ratings import compare_with_usual
from trainer.text.pairs import Answer, Prompt, Rated
from trainer.text.style import FEATURES, SPREADS, describe_style
from trainer.text.transcript import flatten_messages

log = logging.getLogger("trainer.learn.reward")

STYLE_PRIOR = 0.6


def name_slice(prompt: Prompt) -> str:
    """The prompt's tags in one string."""
    return ",".join(f"{name}={value}" for name, value in sorted(prompt.tags.items()))


def name_group(rated: Rated) -> str:
    """What a judged answer is compared with: others of its person; of an outcome, others of its slice."""
    return f"{SLICE}{rated.app}:{name_slice(rated.prompt)}" if rated.kind == "outcome" else rated.user


def _describe(prompt: Prompt, answer: Answer) -> tuple[float, ...]:
    asked = " ".join(str(message["content"]) for message in flatten_messages(prompt.messages))
    return describe_style(asked, answer.shown, answer.is_finished)


class OutcomeModel:
    """Fitted to outcomes once; fit another for others. Raises UnusableRow for prompts that are no text."""

    def __init__(self, outcomes: Sequence[Rated]) -> None:
        rows = [each for each in outcomes if each.kind == "outcome"]
        self.num_outcomes = len(rows)
        features = [_describe(each.prompt, each.answer) for each in rows]
        self._fit = fit_choices(
            Choices(
                features=torch.tensor(features).view(len(rows), len(FEATURES)),
                kinds=torch.full((len(rows),), RATED),
                targets=torch.tensor(compare_with_usual([(name_group(each), each.value) for each in rows])),
                margins=torch.zeros(len(rows)),
                weights=torch.tensor([each.weight for each in rows]),
            ),
            Prior(weight=[STYLE_PRIOR * spread for spread in SPREADS]),
            smoothing=0.0,
        )

    def predict(self, prompt: Prompt, answer: Answer) -> float:
        """Chance of success, 0 to 1, .5 being what the slice usually has."""
        lead = torch.tensor(_describe(prompt, answer)) @ self._fit.weights - self._fit.rated_intercept
        return torch.sigmoid(lead).item()

    def describe_features(self) -> dict[str, float]:
        """What style goes with success: the weight of each feature."""
        return dict(zip(FEATURES, self._fit.weights.tolist(), strict=True))


def make_outcome_model(rated: Sequence[Rated]) -> OutcomeModel | None:
    """Fitted to those of the rows that are outcomes of a prompt that is text; None without any."""
    outcomes = [each for each in rated if each.kind == "outcome" and _is_text(each.prompt)]
    return OutcomeModel(outcomes) if outcomes else None


def _is_text(prompt: Prompt) -> bool:
    try:
        flatten_messages(prompt.messages)
    except ValueError as error:
        log.info("an outcome is left out: %s", error)
        return False
    return True

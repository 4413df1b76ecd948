"""How the style of an answer goes with what came of it: successes and scores that apps report.

An outcome is a label of its slice (the prompt's tags): it is compared with what its slice usually has, since a hard task fails
however it is answered. A handful of weights; says nothing of causes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import torch

from trainer.math.choices import RATED, Choices, Prior, fit_choices
from trainer.text.pairs import Answer, Prompt, Rated
from trainer.text.style import FEATURES, SPREADS, describe_style
from trainer.text.transcript import flatten_messages

STYLE_PRIOR = 0.6
USUAL_PRIOR = 2.0  # outcomes of the average slice that stand beside a slice's own


def name_slice(prompt: Prompt) -> str:
    """The prompt's tags in one string."""
    return ",".join(f"{name}={value}" for name, value in sorted(prompt.tags.items()))


def name_group(rated: Rated) -> str:
    """What a judged answer is compared with: others of its person; of an outcome, others of its slice."""
    return f"slice:{rated.app}:{name_slice(rated.prompt)}" if rated.kind == "outcome" else rated.user


def _describe(prompt: Prompt, answer: Answer) -> tuple[float, ...]:
    asked = " ".join(str(message["content"]) for message in flatten_messages(prompt.messages))
    return describe_style(asked, answer.text, answer.is_finished)


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
                targets=torch.tensor(self._compare([(name_group(each), each.value) for each in rows])),
                margins=torch.zeros(len(rows)),
                weights=torch.tensor([each.weight for each in rows]),
            ),
            Prior(weight=[STYLE_PRIOR * spread for spread in SPREADS]),
            smoothing=0.0,
        )

    @staticmethod
    def _compare(values: Sequence[tuple[str, float]]) -> list[float]:
        """Each value less what its slice usually has, around a half and within 0 to 1."""
        of_slice: dict[str, list[float]] = defaultdict(list)
        for name, value in values:
            of_slice[name].append(value)
        overall = math.fsum(value for _, value in values) / max(1, len(values))
        usual = {
            name: (math.fsum(each) + USUAL_PRIOR * overall) / (len(each) + USUAL_PRIOR)
            for name, each in of_slice.items()
        }
        return [min(1.0, max(0.0, 0.5 + value - usual[name])) for name, value in values]

    def predict(self, prompt: Prompt, answer: Answer) -> float:
        """Chance of success, 0 to 1, .5 being what the slice usually has."""
        lead = torch.tensor(_describe(prompt, answer)) @ self._fit.weights - self._fit.rated_intercept
        return torch.sigmoid(lead).item()

    def describe_features(self) -> dict[str, float]:
        """What style goes with success: the weight of each feature."""
        return dict(zip(FEATURES, self._fit.weights.tolist(), strict=True))

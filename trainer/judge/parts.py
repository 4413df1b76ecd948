"""The reward of a round, part by part, on the answers that the gate samples of both policies.

What the gate decides by stays the preference part's own comparison (measures.compare_scores); here every part is shown with what
it adds, weight and curve applied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from trainer.judge.measures import Asked, Figure, compare
from trainer.learn.rewards.rewards import Rewards, Sample
from trainer.learn.sampling.sampler import Sampled
from trainer.text.transcript import EncodedAnswer

if TYPE_CHECKING:
    from trainer.learn.reward.scores import Scores
    from trainer.learn.rewards.rewards import Scorer

SUM = "reward_sum"


class ScoredOnce:
    """A reward model whose last few scores are remembered: gate and preference part ask for the same answers."""

    def __init__(self, scorer: Scorer, num: int = 2) -> None:
        self._scorer, self._num = scorer, num
        self._kept: dict[tuple[tuple[EncodedAnswer, ...], tuple[str, ...]], Scores] = {}

    def score(self, answers: Sequence[EncodedAnswer], texts: Sequence[str]) -> Scores:
        """As the reward model's."""
        key = tuple(answers), tuple(texts)
        if key not in self._kept:
            self._kept[key] = self._scorer.score(answers, texts)
            while len(self._kept) > self._num:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]


def compare_rewards(
    rewards: Rewards,
    asked: Sequence[Asked],
    answers: Mapping[str, Sequence[Sampled]],
    encoded: Mapping[str, Sequence[EncodedAnswer]],
) -> list[Figure]:
    """`reward_sum` and a figure for each part, over all prompts but red-team ones, which are no one's wish.

    answers, encoded: of "policy" and of "stable", the same number for each prompt, prompt by prompt.
    """
    n = len(answers["policy"]) // len(asked)
    rewarded = [
        rewards.reward(
            [
                Sample(asked[i // n].prompt, sampled.answer, ids)
                for i, (sampled, ids) in enumerate(zip(answers[adapter], encoded[adapter], strict=True))
            ]
        )
        for adapter in ("policy", "stable")
    ]
    named = {SUM: [each.totals for each in rewarded]}
    named |= {f"reward_{part.name}": [each.parts[part.name] for each in rewarded] for part in rewards.parts}
    is_wish = [each.kind != "redteam" for each in asked for _ in range(n)]
    figures = []
    for name, arms in named.items():
        new, old = ([value if wished else None for value, wished in zip(arm, is_wish, strict=True)] for arm in arms)
        figures += [figure for figure in compare(name, asked, new, old, len(asked)) if not figure.slice]
    return figures


def describe_parts(rewards: Rewards, figures: Iterable[Figure]) -> list[dict[str, float | str]]:
    """`name`, `weight`, `before` (stable) and `after` (candidate) of each part and of the sum, for a round's record."""
    weights = {SUM: 1.0, **{f"reward_{name}": weight for name, weight in rewards.describe().items()}}
    return [
        {
            "name": figure.name.removeprefix("reward_"),
            "weight": weights[figure.name],
            "before": figure.stable,
            "after": figure.candidate,
        }
        for figure in figures
        if figure.name in weights and not figure.slice
    ]

"""What is said of learning from preferences, each claim with figures, an interval and a sentence: does it hold here?

`python -m bench.learning.claims`. Reuses the cells of `make bench-learning` and measures what is missing: pairs against ratings,
asking at random, PPO without its KL term, the loss of a model that has the order right. One world, 20% label noise unless it says
otherwise. The last line is one JSON object {claim: {holds, figures}}; holds is null where nobody can tell.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.learning.__main__ import ROOT, SEEDS, Job, Stages, measure
from bench.learning.arms import EVERY, Arm, draw_offline
from bench.learning.asking import Shares
from bench.learning.cells import Cell, Point, Results
from bench.learning.curves import Curve, list_facts, resample, weighted_mean
from bench.learning.stage import Stage
from trainer.learn.reward.model import RewardModel
from trainer.math.intervals import Interval, bootstrap_interval
from trainer.text.pairs import Pair, Rated

CHOICES = 200  # where arms are held side by side
WORLD, NOISE, MESSY = "capitals", 0.2, 0.4


@dataclass(frozen=True)
class Verdict:
    """holds: None where the interval holds both answers."""

    claim: str
    holds: bool | None
    figures: dict[str, Any]
    sentence: str


def compare_rates(ours: Sequence[Point], theirs: Sequence[Point], seed: int = 0) -> Interval:
    """The difference of mean win rates of the same seeds and facts, with the 95% interval."""
    one, other = ([Curve({1: point.wins}) for point in points] for points in (ours, theirs))

    def subtract(drawn: Sequence[tuple[int, Sequence[str]]]) -> float:
        return math.fsum(
            weighted_mean(one[i].points[1], facts) - weighted_mean(other[i].points[1], facts) for i, facts in drawn
        ) / len(drawn)

    rng = np.random.default_rng(seed)
    value = subtract([(i, list_facts(curve)) for i, curve in enumerate(one)])
    found = sorted(subtract(resample(one, rng)) for _ in range(1000))
    return Interval(value, found[25], found[974], len(one))


def decide(interval: Interval, line: float = 0.0) -> bool | None:
    """Whether a figure is clearly above a line; None where nobody can tell."""
    return True if interval.low > line else False if interval.high < line else None


def say(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def describe(interval: Interval) -> dict[str, float]:
    return {name: round(getattr(interval, name), 4) for name in ("value", "low", "high")}


class Claims:
    """The cells that claims rest on, measured where they are missing."""

    def __init__(self, state_dir: Path, seeds: Sequence[int]) -> None:
        self._stages, self._seeds = Stages(state_dir), seeds
        self._results = Results(state_dir / "bench-learning" / "cells")

    def points(self, name: str, arm: Arm, noise: float = NOISE) -> list[dict[int, Point]]:
        """Points of each seed."""
        found = []
        for seed in self._seeds:
            print(f"{name}, noise {noise:.0%}, seed {seed}", flush=True)
            job = Job(Cell("tiny", WORLD, noise, seed, name, arm.settings), arm)
            found.append(measure(job, self._stages, self._results))
        return found

    def at(self, name: str, arm: Arm | None = None, noise: float = NOISE, choices: int = CHOICES) -> list[Point]:
        """One point of each seed."""
        return [points[choices] for points in self.points(name, arm or EVERY[name], noise)]

    def stage(self, seed: int) -> Stage:
        return self._stages.get(Cell("tiny", WORLD, NOISE, seed, "none"))

    @property
    def seeds(self) -> Sequence[int]:
        return self._seeds


def claim_difference(
    claim: str, ours: Sequence[Point], theirs: Sequence[Point], names: tuple[str, str], choices: int = CHOICES
) -> Verdict:
    """That one arm has a higher win rate than another after so many choices."""
    difference = compare_rates(ours, theirs)
    holds = decide(difference)
    said = {True: "holds", False: "is refuted", None: "cannot be told"}[holds]
    sentence = (
        f"{said}: the win rate of {names[0]} less that of {names[1]} is {say(difference)} after {choices} choices"
    )
    return Verdict(claim, holds, {"difference": describe(difference)}, sentence)


def claim_ppo_when_messy(claims: Claims) -> Verdict:
    ours, theirs = claims.at("ppo", noise=MESSY), claims.at("full", noise=MESSY)
    return claim_difference("PPO beats DPO on messy preferences", ours, theirs, ("PPO", "full DPO, both at 40% noise"))


def claim_sft_cannot_exceed(claims: Claims) -> Verdict:
    choices = 2 * CHOICES
    sft, ours = claims.at("sft_chosen", choices=choices), claims.at("online_dpo", choices=choices)
    names = ("online DPO", "SFT on what was chosen")
    return claim_difference("SFT cannot exceed its data, RLHF can", ours, sft, names, choices)


def claim_asking(claims: Claims) -> Verdict:
    arm = EVERY["full"]
    at_random = replace(arm, manner=replace(arm.manner, shares=Shares()))
    return claim_difference(
        "Asking cleverly cuts the choices", claims.at("full"), claims.at("full_random", at_random),
        ("clever asking", "asking at random, the same labelled pairs"),
    )  # fmt: skip


def claim_labels(claims: Claims) -> Verdict:
    arm = EVERY["full"]
    without = {name: value for name, value in arm.manner.dpo.items() if not name.startswith("labelled")}
    unlabelled = replace(arm, manner=replace(arm.manner, dpo=without))
    return claim_difference(
        "Reward-model labels cut the choices", claims.at("full"), claims.at("full_unlabelled", unlabelled),
        ("labelled pairs at 30% of a round", "none, the same asking"),
    )  # fmt: skip


def claim_kl(claims: Claims) -> Verdict:
    """Stable: wrong answers do not rise where the KL term is there."""
    arm = EVERY["ppo"]
    free = replace(arm, manner=replace(arm.manner, ppo=arm.manner.ppo | {"kl_coefficient": 0.0}))
    with_term, without = claims.at("ppo"), claims.at("ppo_without_kl", free)
    found = claim_difference("The KL term keeps PPO stable", with_term, without, ("PPO", "PPO without a KL term"))
    wrong = [math.fsum(point.wrong for point in some) / len(some) for some in (with_term, without)]
    figures = found.figures | {"wrong_with": round(wrong[0], 4), "wrong_without": round(wrong[1], 4)}
    return replace(
        found, figures=figures, sentence=f"{found.sentence}; wrong answers {wrong[0]:.0%} against {wrong[1]:.0%}"
    )


def claim_cost(claims: Claims) -> Verdict:
    spent = {
        name: [
            sum(point.cpu_s for n, point in points.items() if n <= CHOICES)
            for points in claims.points(name, EVERY[name])
        ]
        for name in ("ppo", "full")
    }
    ratios = [ppo / dpo for ppo, dpo in zip(spent["ppo"], spent["full"], strict=True)]
    mean = bootstrap_interval(ratios)
    sentence = f"PPO takes {mean.value:.1f} [{mean.low:.1f}, {mean.high:.1f}] times the CPU of full DPO up to {CHOICES} choices"
    return Verdict("DPO costs less", decide(mean, 1.0), {"ppo_over_dpo": describe(mean)}, sentence)


def split_pairs(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """(to learn from, to judge by)."""
    decisive = [pair for pair in pairs if pair.is_decisive]
    return decisive[: len(decisive) // 2], decisive[len(decisive) // 2 :]


def rate(stage: Stage, pair: Pair, rng: random.Random, spread: float) -> list[Rated]:
    """Both answers of a pair as people would rate them from 1 to 3: worth, as each sees it through noise of its own."""
    rows = []
    worst, best = -2.0, 1.0
    for name, answer in (("a", pair.first), ("b", pair.second)):
        question = next(q for q in stage.questions if q.text == pair.prompt.key)
        seen = (stage.value(question, answer) - worst) / (best - worst) + rng.gauss(0.0, spread)
        stars = min(2, max(0, math.floor(3 * seen)))
        event_id, value = f"{pair.event_id}-{name}", stars / 2
        rows.append(
            Rated(event_id=event_id, prompt=pair.prompt, answer=answer, kind="rating", value=value, user=pair.user)
        )
    return rows


def claim_pairs_beat_ratings(claims: Claims) -> Verdict:
    """As many judgements of each sort, of the same answers: a pair is one choice, or one rating of one of its answers."""
    differences: list[float] = []
    for seed in claims.seeds:
        stage = claims.stage(seed)
        people = stage.draw_crowd(NOISE, seed)
        learnt, judged = split_pairs(draw_offline(stage, people, 2 * CHOICES, seed))
        truth = [_judge(stage, pair) for pair in judged]
        rng = random.Random(f"ratings-{seed}")
        spread = 0.5 / people.strength  # of the logistic noise that choices have, in units of worth a third as wide
        right = []
        for is_rated in (False, True):
            stage.backbone.adapters.reset("reward")
            model = RewardModel(stage.backbone, seed=seed)
            for start in range(0, len(learnt), 64):
                some = learnt[start : start + 64]
                rated = [rng.choice(rate(stage, pair, rng, spread)) for pair in some] if is_rated else []
                model.update([] if is_rated else some, [], rated=rated)
            chances = model.predict(judged)
            right.append(
                [
                    float((chance > 0.5) == first)
                    for chance, first in zip(chances, truth, strict=True)
                    if first is not None
                ]
            )
        differences += [pair - rating for pair, rating in zip(*right, strict=True)]
    difference = bootstrap_interval(differences)
    sentence = f"accuracy of a reward model from {CHOICES} choices less that from as many ratings of one to three: {say(difference)}"
    return Verdict(
        "Pairs beat ratings of one to three", decide(difference), {"difference": describe(difference)}, sentence
    )


def _judge(stage: Stage, pair: Pair) -> bool | None:
    """Whether the first answer is truly better; None where they are worth the same."""
    question = next(q for q in stage.questions if q.text == pair.prompt.key)
    one, other = stage.value(question, pair.first), stage.value(question, pair.second)
    return None if one == other else one > other


def claim_loss_bounds(claims: Claims) -> Verdict:
    """-log sigmoid(d) of choices that the model orders rightly lies between 0 and ln 2, of the others above it."""
    inside, outside = [], []
    for seed in claims.seeds:
        stage = claims.stage(seed)
        learnt, judged = split_pairs(draw_offline(stage, stage.draw_crowd(NOISE, seed), 2 * CHOICES, seed))
        stage.backbone.adapters.reset("reward")
        model = RewardModel(stage.backbone, seed=seed)
        for start in range(0, len(learnt), 64):
            model.update(learnt[start : start + 64], [])
        for chance, pair in zip(model.predict(judged), judged, strict=True):
            of_chosen = chance if pair.preferred == "first" else 1 - chance
            (inside if of_chosen > 0.5 else outside).append(-math.log(of_chosen))
    holds = max(inside) < math.log(2) and (not outside or min(outside) >= math.log(2))
    mean = bootstrap_interval(inside)
    sentence = (
        f"of {len(inside)} choices in the right order the loss is {mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}] in the mean, at"
        f" most {max(inside):.3f}; of {len(outside)} in the wrong order at least {min(outside, default=math.nan):.3f}"
    )
    return Verdict("BT loss lies in (0, .69) when the order is right", holds, {"mean": describe(mean)}, sentence)


CLAIMS: dict[str, Callable[[Claims], Verdict]] = {
    "ppo_when_messy": claim_ppo_when_messy,
    "sft_cannot_exceed": claim_sft_cannot_exceed,
    "pairs_beat_ratings": claim_pairs_beat_ratings,
    "asking": claim_asking,
    "labels": claim_labels,
    "kl": claim_kl,
    "cost": claim_cost,
    "loss_bounds": claim_loss_bounds,
}


def write_verdicts(verdicts: Mapping[str, Verdict]) -> str:
    """A table in Markdown."""
    words = {True: "yes", False: "no", None: "cannot be told"}
    rows = [f"| {verdict.claim} | {words[verdict.holds]} | {verdict.sentence} |" for verdict in verdicts.values()]
    return "\n".join(["| claim | holds | figures |", "|---|---|---|", *rows])


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.learning.claims", description=__doc__)
    parser.add_argument("--only", nargs="*", choices=list(CLAIMS), default=list(CLAIMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(SEEDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--state-dir", type=Path, default=ROOT)
    arguments = parser.parse_args()
    logging.disable(logging.INFO)
    torch.set_num_threads(arguments.threads)
    claims = Claims(arguments.state_dir, arguments.seeds)
    verdicts = {}
    for name in arguments.only:
        verdicts[name] = CLAIMS[name](claims)
        print(f"{verdicts[name].claim}: {verdicts[name].sentence}", flush=True)
    print(write_verdicts(verdicts))
    print(json.dumps({name: {"holds": verdict.holds, **verdict.figures} for name, verdict in verdicts.items()}))


if __name__ == "__main__":
    main()

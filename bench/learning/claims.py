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
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from bench.learning.__main__ import ROOT, SEEDS, Job, Stages, measure
from bench.learning.arms import ROUND_GRID, Arm, draw_offline, make_arms, with_grid
from bench.learning.asking import Shares
from bench.learning.cells import Cell, Point, Results
from bench.learning.curves import Wins, average_by_fact, compare_win_rates, measure_win_rate
from bench.learning.ratings import draw_decisive, find_better, judge_model, learn_rewards, rate
from bench.learning.stage import Stage
from bench.learning.table import show_share
from prefloop.demo.intervals import score_pair
from trainer.math.intervals import Interval, bootstrap_interval

CHOICES = 200  # where arms are held side by side
WORLD, NOISE, MESSY = "capitals", 0.2, 0.4
EVERY = make_arms("tiny")
FULL_BESIDE_PPO = with_grid(EVERY["full"], ROUND_GRID)  # as many rounds as PPO has


@dataclass(frozen=True)
class Verdict:
    """holds: None where the interval holds both answers."""

    claim: str
    holds: bool | None
    figures: dict[str, Any]
    sentence: str


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
    difference = compare_win_rates([point.wins for point in ours], [point.wins for point in theirs])
    holds = decide(difference)
    said = {True: "holds", False: "is refuted", None: "cannot be told"}[holds]
    sentence = (
        f"{said}: the win rate of {names[0]} less that of {names[1]} is {say(difference)} after {choices} choices"
    )
    return Verdict(claim, holds, {"difference": describe(difference)}, sentence)


def claim_ppo_when_messy(claims: Claims) -> Verdict:
    ours = claims.at("ppo", noise=MESSY)
    theirs = claims.at("full_beside_ppo", FULL_BESIDE_PPO, noise=MESSY)
    return claim_difference("PPO beats DPO on messy preferences", ours, theirs, ("PPO", "full DPO, both at 40% noise"))


def claim_sft_cannot_exceed(claims: Claims) -> Verdict:
    """Beside what the chosen answers themselves win against the seed policy's."""
    choices = 2 * CHOICES
    sft, ours = (
        measure_win_rate([point.wins for point in claims.at(arm, choices=choices)])
        for arm in ("sft_chosen", "online_dpo")
    )
    data = measure_win_rate([rate_data(claims.stage(seed), seed, choices) for seed in claims.seeds])
    holds: bool | None = None
    if sft.low <= data.high and ours.low > data.high:
        holds = True
    elif sft.low > data.high or ours.high < data.low:
        holds = False
    figures = {"data": describe(data), "sft": describe(sft), "online_dpo": describe(ours)}
    shown = [show_share(each) for each in (data, sft, ours)]
    sentence = (
        f"after {choices} choices the chosen answers win {shown[0]}, SFT on them {shown[1]}, online DPO {shown[2]}"
    )
    return Verdict("SFT cannot exceed its data, RLHF can", holds, figures, sentence)


def rate_data(stage: Stage, seed: int, choices: int) -> Wins:
    """What chosen answers win against the others that the seed policy gave to the question, by fact."""
    scores = []
    for pair in draw_offline(stage, stage.draw_crowd(NOISE, seed), choices, seed):
        if pair.is_decisive:
            chosen = pair.first if pair.preferred == "first" else pair.second
            asked = next(each for each in stage.pool if each.question.text == pair.prompt.key)
            worth = stage.value(asked.question, chosen)
            others = [
                score_pair(worth, stage.value(asked.question, other)) for other in asked.answers if other != chosen
            ]
            scores.append((asked.question.fact, statistics.fmean(others or [0.5])))
    return average_by_fact(scores)


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
        name: [sum(point.cpu_s for n, point in points.items() if n <= CHOICES) for points in claims.points(name, arm)]
        for name, arm in {"ppo": EVERY["ppo"], "full_beside_ppo": FULL_BESIDE_PPO}.items()
    }
    ratios = [ppo / dpo for ppo, dpo in zip(*spent.values(), strict=True)]
    mean = bootstrap_interval(ratios)
    times = f"{mean.value:.1f} [{mean.low:.1f}, {mean.high:.1f}] times"
    sentence = f"PPO takes {times} the CPU of full DPO in as many rounds, up to {CHOICES} choices"
    return Verdict("DPO costs less", decide(mean, 1.0), {"ppo_over_dpo": describe(mean)}, sentence)


def claim_pairs_beat_ratings(claims: Claims) -> Verdict:
    """As many judgements of each sort, of the same answers by the same people: one choice, or one rating of one of its answers."""
    right: dict[str, list[Wins]] = {"pairs": [], "ratings": []}
    for seed in claims.seeds:
        stage = claims.stage(seed)
        people = stage.draw_crowd(NOISE, seed)
        learnt, judged = draw_decisive(stage, people, CHOICES, seed)
        rng = random.Random(f"ratings-{seed}")
        rated = [rate(stage, people, pair, rng) for pair in learnt]
        right["pairs"].append(judge_model(stage, learn_rewards(stage, seed, learnt, []), judged))
        right["ratings"].append(judge_model(stage, learn_rewards(stage, seed, [], rated), judged))
    difference = compare_win_rates(right["pairs"], right["ratings"])
    shares = {name: round(measure_win_rate(some).value, 4) for name, some in right.items()}
    sentence = (
        f"a reward model from {CHOICES} choices orders {shares['pairs']:.0%} rightly, one from as many ratings of one to three"
        f" {shares['ratings']:.0%}: {say(difference)}"
    )
    return Verdict(
        "Pairs beat ratings of one to three",
        decide(difference),
        {"difference": describe(difference), **shares},
        sentence,
    )


def claim_loss_bounds(claims: Claims) -> Verdict:
    """The mean loss -log P(what was chosen) of pairs whose truly better answer the model puts first, and of the other pairs.

    By itself a choice that a model foresees has a loss below ln 2: that says nothing. People err, so the mean could lie above.
    """
    losses: dict[bool, list[float]] = {True: [], False: []}
    for seed in claims.seeds:
        stage = claims.stage(seed)
        learnt, judged = draw_decisive(stage, stage.draw_crowd(NOISE, seed), CHOICES, seed)
        model = learn_rewards(stage, seed, learnt, [])
        for chance, pair in zip(model.predict(judged), judged, strict=True):
            _, is_first = find_better(stage, pair)
            if is_first is not None:
                losses[(chance > 0.5) == is_first].append(
                    -math.log(chance if pair.preferred == "first" else 1 - chance)
                )
    mean, other = (bootstrap_interval(losses[is_right]) for is_right in (True, False))
    holds = decide(Interval(math.log(2) - mean.value, math.log(2) - mean.high, math.log(2) - mean.low, mean.n))
    found = f"{show_share(mean)} where the model's order is the true one, else {show_share(other)}"
    sentence = f"the mean loss of what was chosen is {found}"
    figures = {"right_order": describe(mean), "wrong_order": describe(other)}
    return Verdict("BT loss lies in (0, .69) when the order is right", holds, figures, sentence)


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

"""What the offline gate stops: 100 broken checkpoints and 100 healthy ones of the tiny world, judged as the trainer would.

`python -m bench.offline_gate [--quick]`; about half an hour on two cores, --quick (10 and 10) four minutes. The last line is
one JSON object: goals are broken_stopped = all, healthy_passed at least 95 of 100. Healthy is what truly is: answers that win
clearly by the people's taste on questions nobody asks, and no more wrong ones; rounds that turn out otherwise are drawn anew.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.offline_gate.checkpoints import BROKEN, TASTES, People, ask_seed, make_prompt, train_good
from prefloop.demo.worlds import capitals as world
from prefloop.startup import build_seed_policy
from trainer.judge.frozen import FrozenSets, list_set_files, load_frozen_sets
from trainer.judge.gate import Verdict
from trainer.judge.judge import judge_checkpoint
from trainer.learn.reward.model import RewardModel
from trainer.learn.sampling.sampler import LocalSampler, Sampled, Samples, SamplingParameters, SamplingRequest
from trainer.model.backbone import Backbone
from trainer.sections.judging import GateSection
from trainer.sections.model import ModelSection
from trainer.text.pairs import Pair, Prompt

ROOT = Path(__file__).parents[2] / "state"
HOW = SamplingParameters(temperature=0.7, top_p=1.0, max_tokens=48)
NUM_HELDOUT = 24
NUM_EXAMINED = 120
MAX_DRAWS = 3  # of a healthy checkpoint for each that is asked for


class CachingSampler:
    """Samples locally, and remembers what `stable` said: it never changes here."""

    source = "local"

    def __init__(self, backbone: Backbone) -> None:
        self._local = LocalSampler(backbone)
        self._known: dict[str, list[list[Sampled]]] = {}

    def sample(self, request: SamplingRequest) -> Samples:
        if request.adapter != "stable":
            return self._local.sample(request)
        key = repr(([prompt.key for prompt in request.prompts], request.n, request.parameters, request.seed))
        if key not in self._known:
            self._known[key] = self._local.sample(request)
        return self._known[key]


@dataclass
class Judge:
    """One taste's reward model and auditor, and everything a verdict needs."""

    backbone: Backbone
    sampler: CachingSampler
    reward: RewardModel
    auditor: RewardModel
    frozen: FrozenSets
    heldout: Sequence[Prompt]

    def judge(self, seed: int) -> Verdict:
        return judge_checkpoint(
            self.backbone, self.sampler, self.reward, self.auditor, self.frozen, GateSection(),
            parameters=HOW, heldout=self.heldout, seed=seed % 5,
        )  # fmt: skip


def learn(model: RewardModel, pairs: Sequence[Pair]) -> RewardModel:
    """As the trainer would, 64 choices at a time."""
    for start in range(0, len(pairs), 64):
        model.update(pairs[start : start + 64], pairs[max(0, start - 64) : start])
    return model


def make_judge(
    backbone: Backbone, sampler: CachingSampler, people: People, frozen: FrozenSets, taste: str, seed: int
) -> Judge:
    rng = random.Random(f"judge-{taste}-{seed}")
    for adapter in ("reward", "auditor"):
        backbone.adapters.reset(adapter)
    reward = learn(RewardModel(backbone), people.choose(TASTES[taste], 384, rng, "reward"))
    auditor = learn(RewardModel(backbone, adapter="auditor", seed=1), people.choose(TASTES[taste], 128, rng, "auditor"))
    heldout = [make_prompt(question) for question in rng.sample(world.people_questions(), NUM_HELDOUT)]
    return Judge(backbone, sampler, reward, auditor, frozen, heldout)


def examine(sampler: CachingSampler, adapter: str, taste: str, seed: int) -> tuple[list[float], float]:
    """(utilities, share of wrong answers) on questions that nobody asks."""
    questions = random.Random(seed).sample(world.held_out_questions(), NUM_EXAMINED)
    sampled = sampler.sample(SamplingRequest([make_prompt(question) for question in questions], adapter, 1, HOW, seed))
    styles = [world.classify(q, s[0].answer.text) for q, s in zip(questions, sampled, strict=True)]
    return [TASTES[taste][style] for style in styles], styles.count("wrong") / len(styles)


def is_healthy(sampler: CachingSampler, taste: str) -> bool:
    """Whether the policy's answers truly win, and are no more often wrong."""
    (new, wrong), (old, wrong_before) = (examine(sampler, adapter, taste, 1) for adapter in ("policy", "stable"))
    wins = sum(0.5 if a == b else float(a > b) for a, b in zip(new, old, strict=True)) / len(new)
    return wins >= 0.55 and wrong <= wrong_before + 0.02


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.offline_gate", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="10 and 10")
    parser.add_argument("--num", type=int, default=100, help="checkpoints of each sort")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--state-dir", type=Path, default=ROOT, help="where the seed policy is, or is built")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    number = 10 if arguments.quick else arguments.num
    base = build_seed_policy(arguments.state_dir)
    backbone = Backbone.load(base, ModelSection(), seed=0)
    frozen = load_frozen_sets(list_set_files(Path("nowhere"), base))
    sampler = CachingSampler(backbone)
    people = ask_seed(backbone, 6, arguments.seed)
    print(json.dumps(run(backbone, sampler, people, frozen, number, arguments.seed)))


def run(
    backbone: Backbone, sampler: CachingSampler, people: People, frozen: FrozenSets, number: int, seed: int
) -> dict[str, Any]:
    """Judge `number` broken checkpoints and as many healthy ones, spread over tastes."""
    started = time.monotonic()
    stopped = passed = num_healthy = num_drawn_anew = 0
    tastes = list(TASTES)
    kinds = list(BROKEN)
    for place, taste in enumerate(tastes):
        judge = make_judge(backbone, sampler, people, frozen, taste, seed)
        accuracy = judge.reward.record.accuracy
        print(
            f"taste {taste}: the reward model foresees {accuracy:.0%}, {time.monotonic() - started:.0f} s", flush=True
        )
        for i in range(place, number, len(tastes)):
            kind = kinds[i // len(tastes) % len(kinds)] if number > 10 else kinds[i % len(kinds)]
            BROKEN[kind](backbone, taste, 1000 * seed + i)
            verdict = judge.judge(i)
            stopped += not verdict.ok
            print(f"  broken ({kind}): {'LET THROUGH, ' if verdict.ok else ''}{verdict.reason:.150}", flush=True)
        for i in range(place, number, len(tastes)):
            for attempt in range(MAX_DRAWS):
                train_good(backbone, people, taste, 1000 * seed + i + 10_000 * attempt)
                if is_healthy(sampler, taste):
                    break
                num_drawn_anew += 1
            else:
                continue
            num_healthy += 1
            verdict = judge.judge(i)
            passed += verdict.ok
            print(f"  healthy: {'' if verdict.ok else 'STOPPED, '}{verdict.reason:.150}", flush=True)
    return {
        "broken_stopped": stopped,
        "healthy_passed": passed,
        "num_broken": number,
        "num_healthy": num_healthy,
        "drawn_anew": num_drawn_anew,
        "seconds": round(time.monotonic() - started),
    }


if __name__ == "__main__":
    main()

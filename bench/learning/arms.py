"""The arms and controls of the measurement, each as settings and as what it examines after so many choices.

Offline arms learn anew from the base for every point of their grid; the others go through their grid as one policy would, a
round at each point. All of an arm's settings are in its cell's key.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from bench.learning.asking import Shares, ask_people
from bench.learning.cells import Point
from bench.learning.controls import examine_best_of, train_sft
from bench.learning.learner import Learner, Manner
from bench.learning.people import People
from bench.learning.stage import Examined, Stage
from trainer.learn.dpo import run_dpo
from trainer.model.logprobs import score_answers
from trainer.sections.training import DpoSection, SftSection
from trainer.settings import TrainerSettings
from trainer.text.pairs import Pair
from trainer.text.rejected import log_rejected

Points = Iterator[tuple[int, Point]]

# TRL's DPOTrainer as it comes: sigmoid, beta .1, three epochs, no warm-up, linear decay, every pair alike, no ties. Its learning
# rate is made for models of billions, so it has ours; two lower ones lost the facts, too (docs/log.md).
TRL_DPO: dict[str, Any] = {
    "epochs": 3, "label_smoothing": 0.0, "warmup_share": 0.0, "decay": "linear", "nll_weight": 0.0, "beta": 0.1,
}  # fmt: skip
PRESETS = {"tiny": "demo", "smollm2": "demo-smollm2"}  # whose settings of rounds our arms have
FREQUENT: dict[str, Any] = {"update_every_preferences": 16}  # what is asked next hangs on what was said just now
CLEVER = Shares(random=0.1, informative=0.3, telling=0.6, candidates=4)

OFFLINE_GRID = (50, 100, 200, 400, 800, 1600)
FULL_GRID = (
    25,
    50,
    75,
    100,
    150,
    200,
    300,
    400,
)  # the more rounds, the fewer choices: both that DPO teaches have as many
ONLINE_GRID = (*FULL_GRID, 600, 800)
ROUND_GRID = (
    50,
    100,
    200,
    400,
)  # of rounds that sample: they cost ten times as much. Claims hold them beside DPO at these


@dataclass(frozen=True)
class Arm:
    """kind: offline, sft, best_of, ceiling, or chain for policies that learn as choices come."""

    kind: str
    manner: Manner
    is_shuffled: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything its results hang on, defaults included, for the cell's key."""
        sft = SftSection(**self.extra.get("sft", {})).model_dump(mode="json")
        return asdict(self) | {"manner": self.manner.resolve(), "extra": {"sft": sft}}


def get_preset(model: str) -> dict[str, Any]:
    """The trainer's settings with which a model of this measurement ships, where they are no defaults."""
    preset: dict[str, Any] = TrainerSettings.preset_values(PRESETS[model])["trainer"]
    return preset


def make_arms(model: str) -> dict[str, Arm]:
    """The arms, then the controls, in the order of what is worth most."""
    preset = get_preset(model)
    dpo, ppo = preset["dpo"], preset["ppo"]
    trl = TRL_DPO | {"lr": dpo["lr"]}
    full = Manner(FULL_GRID, shares=CLEVER, dpo=dpo | {"labelled_share": 0.3}, reward=FREQUENT)
    return {
        "ceiling": Arm("ceiling", Manner((0,))),
        "offline": Arm("offline", Manner(OFFLINE_GRID, dpo=trl)),
        "online_dpo": Arm("chain", Manner(ONLINE_GRID, dpo=dpo)),
        "full": Arm("chain", full),
        "ppo": Arm("chain", Manner(ROUND_GRID, shares=CLEVER, ppo=ppo, reward=FREQUENT, update="ppo")),
        "third": Arm("chain", Manner(ROUND_GRID, shares=CLEVER, reward=FREQUENT, update="third")),
        "shuffled": Arm("chain", replace(full, grid=(100, 400)), is_shuffled=True),
        "offline_ours": Arm("offline", Manner((100, 400, 1600), dpo=dpo)),
        "sft_chosen": Arm("sft", Manner((100, 400, 1600), dpo=dpo), extra={"sft": {"epochs": 2}}),
        "best_of_4": Arm("best_of", Manner((100, 400), dpo=dpo)),
    }


def with_grid(arm: Arm, grid: tuple[int, ...]) -> Arm:
    """The same arm, examined elsewhere."""
    return replace(arm, manner=replace(arm.manner, grid=grid))


def run_arm(arm: Arm, stage: Stage, noise: float, seed: int, known: Mapping[int, Point]) -> Points:
    """Points of the arm in the order of its grid; those that are known are not measured again, where an arm can skip them."""
    people = stage.draw_crowd(noise, seed, is_shuffled=arm.is_shuffled)
    if arm.kind == "chain":
        return run_chain(arm.manner, stage, people, seed)
    runs: dict[str, Callable[[Arm, Stage, People, int, int], Point]] = {
        "offline": _run_offline, "sft": _run_sft, "best_of": _run_best_of, "ceiling": _run_ceiling,
    }  # fmt: skip
    return ((n, runs[arm.kind](arm, stage, people, seed, n)) for n in arm.manner.grid if n not in known)


def run_chain(manner: Manner, stage: Stage, people: People, seed: int) -> Points:
    """One policy from choice to choice."""
    learner = Learner(stage, people, manner, seed)
    for n in manner.grid:
        started = time.process_time()
        learner.ask(n - len(learner.pairs))
        figures = learner.run_round()
        learner.keep_round()
        spent = time.process_time() - started
        described = learner.reward.describe()
        kept = {
            name: described[name]
            for name in ("accuracy_prequential", "accuracy_style_alone", "head_share", "adapter_share")
        }
        yield n, make_point(stage.examine("policy", seed), spent, figures | kept)


def make_point(examined: Examined, cpu_s: float, figures: Mapping[str, float]) -> Point:
    return Point(
        examined.wins, examined.wrong, round(cpu_s, 2), {name: round(value, 5) for name, value in figures.items()}
    )


def draw_offline(stage: Stage, people: People, number: int, seed: int) -> list[Pair]:
    """Choices between the seed policy's answers, asked at random; a smaller number gives the first of a larger."""
    rng = random.Random(f"offline-{seed}")
    pairs: list[Pair] = []
    while len(pairs) < number:
        pairs += ask_people(
            stage, people, 50, rng, adapter=None, shares=Shares(), reward=None, first_number=len(pairs)
        )  # fmt: skip
    return pairs[:number]


def _run_offline(arm: Arm, stage: Stage, people: People, seed: int, number: int) -> Point:
    started = time.process_time()
    pairs = [pair for pair in draw_offline(stage, people, number, seed) if pair.is_decisive]
    torch.manual_seed(seed)
    stage.backbone.adapters.reset("policy")
    encoded = stage.backbone.transcriber.encode_pairs(pairs, "offline", log_rejected)
    figures = run_dpo(
        stage.backbone, encoded, DpoSection(**arm.manner.dpo), seed=seed,
        references=lambda answers: score_answers(stage.backbone, answers, None)[0],
    )  # fmt: skip
    spent = time.process_time() - started
    return make_point(stage.examine("policy", seed), spent, figures)


def _run_sft(arm: Arm, stage: Stage, people: People, seed: int, number: int) -> Point:
    started = time.process_time()
    figures = train_sft(stage, draw_offline(stage, people, number, seed), SftSection(**arm.extra["sft"]), seed)
    spent = time.process_time() - started
    return make_point(stage.examine("policy", seed), spent, figures)


def _run_best_of(arm: Arm, stage: Stage, people: People, seed: int, number: int) -> Point:
    started = time.process_time()
    learner = Learner(stage, people, arm.manner, seed)
    learner.ask(number)
    spent = time.process_time() - started
    return make_point(examine_best_of(stage, learner.reward, seed), spent, {})


def _run_ceiling(arm: Arm, stage: Stage, people: People, seed: int, number: int) -> Point:
    return make_point(stage.examine_best(), 0.0, {})

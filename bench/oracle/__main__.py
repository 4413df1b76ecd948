"""This trainer beside TRL, step by step: `python -m bench.oracle [--model DIR] [--steps 20] [--tasks dpo reward sft ppo]`.

Both learn from the same batch with the same first weights and optimizer, in float32 unless asked for float64; every loss and
mean log-probability of every step is compared, in nats; log-probabilities are those of whole answers. TRL is the newest release;
for PPO see ppo.py. The last line is one JSON object with the largest differences; more than 1e-4 is a finding. Speed is not
measured here.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.oracle import exact, ppo
from bench.trl import ours
from bench.trl.environment import install_trl
from bench.trl.models import (
    Sizes,
    build_tiny_model,
    make_rows,
    write_rows,
    write_start,
)
from bench.trl.worker import Worker

FOLDER = Path(__file__).parents[2] / "state" / "bench"
SMOLLM = Path(__file__).parents[2] / "state" / "models" / "smollm2"
PAIRS = 4
SIZES = Sizes((8, 20), (6, 20))  # numbers agree or not whatever the length
LR = 2e-4
SMOOTHING = 0.1
TASKS = ("dpo", "reward", "sft", "ppo")
# (our settings, TRL's): a loss of each side that must be the same
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sigmoid": ({}, {}),
    "sigmoid_norm": ({"beta_norm": 2.0}, {"beta": 2.0}),
    "hinge": ({}, {}),
    "ipo": ({"loss": "ipo_norm"}, {}),
    "exo_pair": ({"label_smoothing": SMOOTHING}, {"label_smoothing": SMOOTHING}),
    "nca_pair": ({}, {}),
    "robust": ({"loss": "rdpo", "label_smoothing": SMOOTHING}, {"label_smoothing": SMOOTHING}),
    "bco_pair": ({}, {}),
    "sppo_hard": ({}, {}),
    "aot": ({"label_smoothing": SMOOTHING}, {"label_smoothing": SMOOTHING}),
    "aot_unpaired": ({"label_smoothing": SMOOTHING}, {"label_smoothing": SMOOTHING}),
    "apo_zero": ({}, {}),
    "apo_down": ({}, {}),
    "discopop": ({}, {}),
    "sigmoid forward_kl": ({"divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    "sigmoid js_divergence": ({"divergence": "js_divergence"}, {"f_divergence_type": "js_divergence"}),
    "sigmoid alpha_divergence": ({"divergence": "alpha_divergence"}, {"f_divergence_type": "alpha_divergence"}),
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.oracle", description=__doc__)
    parser.add_argument(
        "--model", type=Path, action="append", help="a model's directory; default: tiny, and SmolLM2 if made"
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--float64",
        action="store_true",
        help="weights and products in float64: what differs is the method, not rounding",
    )
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS, help="default: all")
    parser.add_argument("--variants", nargs="*", choices=[*VARIANTS], help="DPO's losses; default: all")
    parser.add_argument(
        "--exact", type=int, default=0, help="steps of DPO in float64, too: which side is nearer to it?"
    )
    parser.add_argument("--trl", default="trl", help="requirement to install, trl==1.16.0 for instance; not for PPO")
    return parser.parse_args()


def largest_difference(
    mine: list[dict[str, float]], theirs: list[dict[str, float]], num_steps: int
) -> dict[str, float]:
    """By figure, over all steps. Raises ValueError if a side has another number of steps."""
    if not len(mine) == len(theirs) == num_steps:
        raise ValueError(f"{len(mine)} steps here, {len(theirs)} in TRL, {num_steps} expected")
    return {name: max(abs(a[name] - b[name]) for a, b in zip(mine, theirs, strict=True)) for name in theirs[0]}


class Workers:
    """TRL's side: a process with the newest release and one with the last that has PPO, each started when first asked."""

    def __init__(self, requirement: str) -> None:
        self._requirement = requirement
        self._started: dict[str, Worker] = {}

    @property
    def newest(self) -> Worker:
        """DPO, reward and SFT."""
        return self._start("peer.py", self._requirement)

    @property
    def ppo(self) -> Worker:
        """PPO."""
        return self._start("ppo_peer.py", ppo.TRL)

    def _start(self, file: str, requirement: str) -> Worker:
        if file not in self._started:
            path = Path(__file__).parents[1] / "trl" / file
            argv = [str(install_trl(FOLDER, requirement)), str(path)]
            self._started[file] = Worker(argv, {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}, FOLDER)
        return self._started[file]

    def close(self) -> None:
        """End both."""
        for worker in self._started.values():
            worker.close()


class Comparison:
    """One model, both sides; keeps the largest difference by task in `found`."""

    def __init__(
        self, model: Path, is_tiny: bool, workers: Workers, arguments: argparse.Namespace, folder: Path
    ) -> None:
        self._name, self._is_tiny, self._workers, self._arguments = model.name, is_tiny, workers, arguments
        self._folder = folder
        self._backbone = backbone = ours.warm_backbone(str(model), False, "cpu", arguments.float64)
        self._rows = (
            make_rows(PAIRS, SIZES, backbone.vocab_size, 0) if is_tiny else write_rows(backbone, PAIRS, SIZES, 0)
        )
        self._asked: dict[str, Any] = {
            **write_start(folder, backbone),
            "model": str(model),
            "rows": self._rows,
            "batch_size": PAIRS,
            "epochs": arguments.steps,
            "lr": LR,
            "bf16": False,
            "float64": arguments.float64,
            "device": "cpu",
            "threads": arguments.threads,
            "record": True,
            "best": True,
            "load_inside": False,
            "centre_weight": 0.01,
        }
        self.found: dict[str, float] = {}

    def run(self) -> None:
        """All tasks that were asked for."""
        for task in self._arguments.tasks:
            getattr(self, f"compare_{task}")()

    def compare_dpo(self) -> None:
        """Every loss; with --exact the first one in float64, too."""
        for name in self._arguments.variants or VARIANTS:
            settings, trl = VARIANTS[name]
            loss = name.split()[0]
            mine = ours.dpo({**self._asked, "dpo": {"label_smoothing": 0.0, "loss": loss, **settings}})
            theirs = self._workers.newest.ask("dpo", **self._asked, dpo={"beta": 0.1, "loss_type": [loss], **trl})
            self._note_steps("dpo", name, mine, theirs)
            if name == "sigmoid" and self._arguments.exact:
                self._compare_exactly(mine["steps"], theirs["steps"])

    def _compare_exactly(self, mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
        number = self._arguments.exact
        truth = exact.dpo(self._asked, number)
        for side, steps in (("this trainer", mine), ("TRL", theirs)):
            differences = largest_difference(steps[:number], truth, number)
            self._say(f"sigmoid, {side} from float64 in {number} steps", differences, truth[-1])

    def compare_reward(self) -> None:
        """Bradley and Terry's loss on a linear head."""
        whole = [
            {f"{k}_ids": row["prompt_ids"] + row[f"{k}_ids"] for k in ("chosen", "rejected")} for row in self._rows
        ]
        mine = ours.bradley_terry(self._asked)
        self._note_steps("reward", "reward", mine, self._workers.newest.ask("reward", **{**self._asked, "rows": whole}))

    def compare_sft(self) -> None:
        """On the chosen answers."""
        masked = [
            {
                "input_ids": row["prompt_ids"] + row["chosen_ids"],
                "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["chosen_ids"]),
            }
            for row in self._rows
        ]
        mine = ours.sft(self._asked)
        self._note_steps("sft", "sft", mine, self._workers.newest.ask("sft", **{**self._asked, "rows": masked}))

    def compare_ppo(self) -> None:
        """On samples that are given to both sides."""
        for name, (sizes, is_moved) in ppo.VARIANTS.items():
            rows = ppo.make_samples(self._backbone, PAIRS, sizes, self._is_tiny)
            task = ppo.make_task(self._folder, self._backbone, self._asked, rows)
            asked = {**task, "reward_at_last_token": is_moved}
            theirs, mine = self._workers.ppo.ask("ppo", **asked), ppo.ours(asked)
            differences = ppo.find_differences(mine, theirs, self._arguments.steps)
            self._note("ppo", f"{name} (TRL {theirs['trl']})", differences, {})

    def _note_steps(self, task: str, name: str, mine: Any, theirs: Any) -> None:
        differences = largest_difference(mine["steps"], theirs["steps"], self._arguments.steps)
        self._note(task, f"{name} (TRL {theirs['trl']})", differences, theirs["steps"][-1])

    def _note(self, task: str, name: str, differences: dict[str, float], last: dict[str, float]) -> None:
        """Print a comparison and keep the task's largest difference."""
        self._say(name, differences, last)
        self.found[task] = max(self.found.get(task, 0.0), *differences.values())

    def _say(self, name: str, differences: dict[str, float], last: dict[str, float]) -> None:
        shown = [
            f"{figure} {value:.1e}" + (f" (at {last[figure]:.4f})" if figure in last else "")
            for figure, value in differences.items()
        ]
        print(f"{self._name} {name}: {', '.join(shown)}", file=sys.stderr, flush=True)


def main() -> None:
    arguments = parse_arguments()
    if "ppo" in arguments.tasks and arguments.float64:
        sys.exit("PPO is compared in float32 alone: with --float64 name the others, --tasks dpo reward sft")
    if "ppo" in arguments.tasks and arguments.steps % ppo.EPOCHS:
        sys.exit(f"PPO takes {ppo.EPOCHS} steps on each batch: --steps must be a multiple of that")
    tiny = build_tiny_model(FOLDER)
    models = [model.resolve() for model in arguments.model or ()] or [
        tiny,
        *([SMOLLM] if (SMOLLM / "config.json").exists() else []),
    ]
    workers = Workers(arguments.trl)
    worst: dict[str, float] = {}
    try:
        for model in models:
            with tempfile.TemporaryDirectory() as folder:
                comparison = Comparison(model, model == tiny, workers, arguments, Path(folder))
                comparison.run()
            for task, difference in comparison.found.items():
                worst[task] = max(worst.get(task, 0.0), difference)
    finally:
        workers.close()
    if "ppo" in worst:
        print(*ppo.ALLOWED, sep="\n", file=sys.stderr)
    print(json.dumps({f"{task}_max_diff": float(f"{worst[task]:.3g}") for task in arguments.tasks}))


if __name__ == "__main__":
    main()

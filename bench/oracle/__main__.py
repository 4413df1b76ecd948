"""This trainer beside TRL's newest release, step by step: `python -m bench.oracle [--model DIR] [--steps 20] [--quick]`.

Both learn from the same batch with the same first weights and optimizer in float32; every loss and mean log-probability of
every step is compared, in nats; log-probabilities are those of whole answers. The last line is one JSON object with the
largest differences; more than 1e-4 is a finding. Speed is not measured here.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.trl import ours
from bench.trl.environment import install_trl
from bench.trl.models import (
    Sizes,
    build_tiny_model,
    load_backbone,
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
    parser.add_argument("--variants", nargs="*", choices=[*VARIANTS], help="DPO's losses; default: all")
    parser.add_argument("--trl", default="trl", help="requirement to install, trl==1.16.0 for instance")
    return parser.parse_args()


def largest_difference(
    mine: list[dict[str, float]], theirs: list[dict[str, float]], num_steps: int
) -> dict[str, float]:
    """By figure, over all steps. Raises ValueError if a side has another number of steps."""
    if not len(mine) == len(theirs) == num_steps:
        raise ValueError(f"{len(mine)} steps here, {len(theirs)} in TRL, {num_steps} expected")
    return {name: max(abs(a[name] - b[name]) for a, b in zip(mine, theirs, strict=True)) for name in theirs[0]}


def compare(model: Path, is_tiny: bool, worker: Worker, arguments: argparse.Namespace) -> dict[str, float]:
    """The largest difference by task on one model."""
    backbone = load_backbone(model, bf16=False, device="cpu")
    rows = make_rows(PAIRS, SIZES, backbone.vocab_size, 0) if is_tiny else write_rows(backbone, PAIRS, SIZES, 0)
    with tempfile.TemporaryDirectory() as folder:
        asked: dict[str, Any] = {
            **write_start(Path(folder), backbone),
            "model": str(model),
            "rows": rows,
            "batch_size": PAIRS,
            "epochs": arguments.steps,
            "lr": LR,
            "bf16": False,
            "device": "cpu",
            "threads": arguments.threads,
            "record": True,
            "best": True,
            "load_inside": False,
            "centre_weight": 0.01,
        }
        del backbone
        found: dict[str, float] = {}
        for name in arguments.variants or VARIANTS:
            settings, trl = VARIANTS[name]
            loss = name.split()[0]
            mine = ours.dpo({**asked, "dpo": {"label_smoothing": 0.0, "loss": loss, **settings}})
            theirs = worker.ask("dpo", **asked, dpo={"beta": 0.1, "loss_type": [loss], **trl})
            note(found, "dpo", f"{model.name} {name}", mine, theirs, arguments.steps)
        whole = [{f"{k}_ids": row["prompt_ids"] + row[f"{k}_ids"] for k in ("chosen", "rejected")} for row in rows]
        mine, theirs = ours.bradley_terry(asked), worker.ask("reward", **{**asked, "rows": whole})
        note(found, "reward", f"{model.name} reward", mine, theirs, arguments.steps)
        masked = [
            {
                "input_ids": row["prompt_ids"] + row["chosen_ids"],
                "completion_mask": [0] * len(row["prompt_ids"]) + [1] * len(row["chosen_ids"]),
            }
            for row in rows
        ]
        mine, theirs = ours.sft(asked), worker.ask("sft", **{**asked, "rows": masked})
        note(found, "sft", f"{model.name} sft", mine, theirs, arguments.steps)
    return found


def note(found: dict[str, float], task: str, name: str, mine: Any, theirs: Any, num_steps: int) -> None:
    """Print a comparison and keep the task's largest difference."""
    differences = largest_difference(mine["steps"], theirs["steps"], num_steps)
    last = theirs["steps"][-1]
    shown = ", ".join(f"{figure} {value:.1e} (at {last[figure]:.4f})" for figure, value in differences.items())
    print(f"{name}: {shown}; TRL {theirs['trl']}", file=sys.stderr, flush=True)
    found[task] = max(found.get(task, 0.0), *differences.values())


def main() -> None:
    arguments = parse_arguments()
    python = install_trl(FOLDER, arguments.trl)
    tiny = build_tiny_model(FOLDER)
    models = [model.resolve() for model in arguments.model or ()] or [
        tiny,
        *([SMOLLM] if (SMOLLM / "config.json").exists() else []),
    ]
    peer = Path(__file__).parents[1] / "trl" / "peer.py"
    worker = Worker([str(python), str(peer)], {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}, FOLDER)
    worst: dict[str, float] = {}
    try:
        for model in models:
            for task, difference in compare(model, model == tiny, worker, arguments).items():
                worst[task] = max(worst.get(task, 0.0), difference)
    finally:
        worker.close()
    print(json.dumps({f"{task}_max_diff": float(f"{worst[task]:.3g}") for task in ("dpo", "reward", "sft")}))


if __name__ == "__main__":
    main()

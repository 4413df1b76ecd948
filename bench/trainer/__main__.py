"""This trainer's speed and memory beside TRL's newest release: `python -m bench.trainer [--quick] [--device cuda]`.

Same model, first weights, ids, batch, optimizer, dtype and threads; turn about, medians. A round is measured from pairs of ids to
the trained adapter, references included; TRL's from its trainer's construction on. On a CPU seconds are CPU seconds of one
thread, which other processes on the machine disturb least. PPO, which TRL has no more, is measured beside the policy alone. The last
line is one JSON object. Equality is bench/oracle's.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from bench.trainer.models import Subject, list_subjects
from bench.trainer.ppo import measure_ppo
from bench.trl.environment import install_trl
from bench.trl.models import WORDS, load_backbone, make_rows, write_start
from bench.trl.worker import Worker
from trainer.text.pairs import Answer, Prompt
from trainer.text.transcript import Transcriber

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "state" / "bench"
BATCH = 8
LR = 2e-4
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bfloat16
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured. num_history: pairs whose references are cached before a small round of new and as many old ones."""

    repeats: int
    num_history: int
    num_new: int


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.trainer", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pairs, three times: a look, not a measurement")
    parser.add_argument("--repeats", type=int, help="how often each side is measured (5; 3 with --quick)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument(
        "--smollm", type=Path, default=ROOT / "state" / "models" / "smollm2", help="SmolLM2's directory"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only", nargs="+", metavar="MODEL", help="models by name, tiny or smollm for instance; all if unset"
    )
    parser.add_argument("--trl", default="trl", help="requirement to install, trl==1.16.0 for instance")
    return parser.parse_args()


class Field:
    """One model and the processes of both sides, each with a memory of its own."""

    def __init__(self, subject: Subject, python: Path, arguments: argparse.Namespace, folder: Path) -> None:
        self.subject, self._arguments = subject, arguments
        self.seconds = "wall_s" if arguments.device == "cuda" else "cpu_s"
        backbone = load_backbone(subject.model, bf16=True, device="cpu")
        self.num_parameters = backbone.num_parameters
        self.is_bf16 = backbone.dtype == torch.bfloat16
        self._asked: dict[str, Any] = {
            **write_start(folder, backbone),
            "model": str(subject.model),
            "batch_size": BATCH,
            "epochs": 1,
            "lr": LR,
            "bf16": self.is_bf16,
            "device": arguments.device,
            "threads": arguments.threads,
            "record": False,
            "best": True,
            "load_inside": False,
            "centre_weight": 0.01,
        }
        del backbone
        self._folder = folder
        self._python = python
        self._workers: dict[str, Worker] = {}

    def ask(self, side: str, task: str, **arguments: Any) -> dict[str, Any]:
        """Have a side ("ours …" or "trl …") do a task; its process is started at its first."""
        if side not in self._workers:
            peer = [str(self._python), str(ROOT / "bench" / "trl" / "peer.py")]
            ours = [sys.executable, "-m", "bench.trl.ours"]
            env = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(self._arguments.threads)}
            env["HF_DATASETS_CACHE"] = str(self._folder / "datasets")
            self._workers[side] = Worker(ours if side.startswith("ours") else peer, env, ROOT)
        answer = self._workers[side].ask(task, **{**self._asked, **arguments})
        held = f", {answer['rss_mb']:.0f} MiB" if "rss_mb" in answer else ""
        spent = f"{answer.get(self.seconds, 0.0):.1f} s{held}"
        print(f"{self.subject.name}: {side}: {task}: {spent}", file=sys.stderr, flush=True)
        return answer

    def close(self) -> None:
        """End all processes: those of one measurement keep gigabytes, and the next one starts its own."""
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()


def take_turns(repeats: int, sides: dict[str, Callable[[int], dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """Every side once a turn, the order changing from turn to turn; a turn before them warms up and does not count."""
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for turn in range(repeats + 1):
        names = list(sides) if turn % 2 else list(reversed(sides))
        for side in names:
            answer = sides[side](turn)
            if turn:
                found[side].append(answer)
    return found


def measure_rounds(field: Field, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """DPO rounds on the same pairs."""
    subject = field.subject
    rows = make_rows(subject.num_pairs, subject.sizes, subject.vocabulary, 0)
    ours, trl = {"loss": "sigmoid", "label_smoothing": 0.0}, {"loss_type": ["sigmoid"], "beta": 0.1}
    return take_turns(
        repeats,
        {
            "ours": lambda turn: field.ask("ours dpo", "dpo", rows=rows, dpo=ours),
            "trl best": lambda turn: field.ask("trl dpo best", "dpo", rows=rows, dpo=trl),
            "trl default": lambda turn: field.ask("trl dpo default", "dpo", rows=rows, dpo=trl, best=False),
        },
    )


def measure_small_rounds(field: Field, sizes: Sizes, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Rounds of new pairs and as many of a history whose references are cached; TRL loads the model and knows no history."""
    subject = field.subject
    history = make_rows(sizes.num_history, subject.sizes, subject.vocabulary, 1)
    cache = str(folder / "references")
    field.ask("ours dpo", "fill_references", rows=history, references_dir=cache)
    ours, trl = {"loss": "sigmoid", "label_smoothing": 0.0}, {"loss_type": ["sigmoid"], "beta": 0.1}

    def draw(turn: int) -> Rows:
        new = make_rows(sizes.num_new, subject.sizes, subject.vocabulary, 100 + turn)
        return new + random.Random(turn).sample(history, sizes.num_new)

    return take_turns(
        sizes.repeats,
        {
            "ours": lambda turn: field.ask("ours dpo", "dpo", rows=draw(turn), dpo=ours, references_dir=cache),
            "trl best": lambda turn: field.ask("trl dpo best", "dpo", rows=draw(turn), dpo=trl, load_inside=True),
        },
    )


def make_texts(subject: Subject) -> list[tuple[str, str, str]]:
    """(question, chosen, rejected) of random words, about as long as the subject's rows."""
    rng = random.Random(0)

    def say(bounds: tuple[int, int]) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(*bounds)))

    return [
        (say(subject.sizes.prompt), say(subject.sizes.answer), say(subject.sizes.answer))
        for _ in range(subject.num_rewarded)
    ]


def encode_texts(subject: Subject, texts: list[tuple[str, str, str]]) -> Rows:
    """The token ids of both conversations, as the reward model reads them."""
    tokenizer = AutoTokenizer.from_pretrained(subject.model)
    transcriber = Transcriber(tokenizer, [tokenizer.eos_token_id], 4096)

    def encode(question: str, answer: str) -> list[int]:
        prompt = Prompt(messages=[{"role": "user", "content": question}])
        encoded = transcriber.encode_answer(prompt, Answer(text=answer))
        return [*encoded.prompt, *encoded.answer]

    return [{"chosen_ids": encode(q, chosen), "rejected_ids": encode(q, rejected)} for q, chosen, rejected in texts]


def measure_rewards(field: Field, repeats: int) -> dict[str, list[dict[str, Any]]]:
    """The reward model's updates of 64 pairs, and TRL's trainer, on the same conversations once."""
    texts = make_texts(field.subject)
    rows = encode_texts(field.subject, texts)
    return take_turns(
        repeats,
        {
            "ours": lambda turn: field.ask("ours reward", "update_reward", texts=texts),
            "trl best": lambda turn: field.ask("trl reward", "reward", rows=rows),
        },
    )


def median(found: list[dict[str, Any]], name: str) -> float:
    return statistics.median(answer[name] for answer in found)


def ratio(found: dict[str, list[dict[str, Any]]], side: str, seconds: str) -> float:
    """How many times as fast we are as that side."""
    return round(median(found[side], seconds) / median(found["ours"], seconds), 2)


def measure(field: Field, sizes: Sizes, folder: Path, *, with_small: bool) -> dict[str, Any]:
    """All figures of one model."""
    subject, seconds = field.subject, field.seconds
    rounds = measure_rounds(field, sizes.repeats)
    field.close()
    rewards = measure_rewards(field, sizes.repeats)
    field.close()
    rows = make_rows(subject.num_pairs, subject.sizes, subject.vocabulary, 0)
    tokens = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    once = tokens - sum(len(row["prompt_ids"]) for row in rows)
    table = Table("side", "pairs/s", "tokens/s", "peak MiB", title=f"{subject.name}: DPO, {len(rows)} pairs, {seconds}")
    for side, found in rounds.items():
        took = median(found, seconds)
        memory = median(found, "gpu_mb" if field.seconds == "wall_s" else "rss_mb")
        table.add_row(side, f"{len(rows) / took:.2f}", f"{tokens / took:.0f}", f"{memory:.0f}")
    for side, found in rewards.items():
        took = median(found, seconds)
        table.add_row(f"reward: {side}", f"{subject.num_rewarded / took:.2f}", "", f"{median(found, 'rss_mb'):.0f}")
    Console(stderr=True).print(table)
    figures: dict[str, Any] = {
        "dpo_over_trl_best": ratio(rounds, "trl best", seconds),
        "dpo_over_trl_default": ratio(rounds, "trl default", seconds),
        "reward_over_trl_best": ratio(rewards, "trl best", seconds),
        "pairs_per_s": round(len(rows) / median(rounds["ours"], seconds), 2),
        "rss_mb": round(median(rounds["ours"], "rss_mb")),
        "reward_rss_mb": round(median(rewards["ours"], "rss_mb")),
        "trl_rss_mb": round(median(rounds["trl best"], "rss_mb")),
    }
    if with_small:
        figures["small_round_over_trl"] = ratio(measure_small_rounds(field, sizes, folder), "trl best", seconds)
    if field.seconds == "wall_s":
        flops = 6 * field.num_parameters * once  # forward, backward to activations, and the reference's forward
        peak = next((value for name, value in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()), None)
        figures["gpu_mb"] = round(median(rounds["ours"], "gpu_mb"))
        figures["trl_gpu_mb"] = round(median(rounds["trl best"], "gpu_mb"))
        figures["mfu"] = round(flops / median(rounds["ours"], seconds) / peak, 3) if peak else None
    return figures


def main() -> None:
    arguments = parse_arguments()
    repeats = arguments.repeats or (3 if arguments.quick else 5)
    sizes = Sizes(repeats, 64, 32) if arguments.quick else Sizes(repeats, 10_000, 256)
    python = install_trl(FOLDER, arguments.trl)
    subjects = list_subjects(FOLDER, arguments.smollm.resolve(), arguments.device, arguments.quick)
    names = [subject.name for subject in subjects]
    if unknown := set(arguments.only or []) - set(names):
        raise SystemExit(f"bench.trainer: no model {', '.join(sorted(unknown))} here (known: {', '.join(names)})")
    figures: dict[str, Any] = {}
    for subject in subjects:
        if arguments.only and subject.name not in arguments.only:
            continue
        is_first = subject is subjects[0]
        with tempfile.TemporaryDirectory() as folder:
            field = Field(subject, python, arguments, Path(folder))
            try:
                found = measure(field, sizes, Path(folder), with_small=is_first)
            finally:
                field.close()
        if is_first or arguments.device == "cuda":
            manner = {"bf16": field.is_bf16, "device": arguments.device, "threads": arguments.threads}
            found |= measure_ppo(subject, **manner, repeats=sizes.repeats)
        figures |= found if is_first else {subject.name: found}
        print(f"{subject.name}: {json.dumps(found)}", file=sys.stderr, flush=True)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()

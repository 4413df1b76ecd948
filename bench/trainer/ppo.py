"""How fast a PPO round samples and learns, and what four models hold in memory beside the policy alone."""

import statistics
import sys
from pathlib import Path
from typing import Any

from bench.trainer.models import Subject
from bench.trl.worker import Worker

ROOT = Path(__file__).parents[2]
MANNERS: dict[str, dict[str, Any]] = {  # of a round, by device; the rest is as the settings come
    "cpu": {"iterations": 2, "prompts_per_iteration": 16, "samples_per_prompt": 4, "epochs": 2},
    "cuda": {"iterations": 2, "prompts_per_iteration": 32, "samples_per_prompt": 4, "epochs": 2},
}
SAMPLED_TOKENS = {"cpu": 8192, "cuda": 131_072}
MOST_ANSWERED = 128  # tokens


def measure_ppo(subject: Subject, *, bf16: bool, device: str, threads: int, repeats: int) -> dict[str, float]:
    """Medians of `repeats` rounds, each in a process of its own, beside policy steps alone on the last answers of each."""
    answered = (subject.sizes.answer[0], min(subject.sizes.answer[1], MOST_ANSWERED))
    asked: dict[str, Any] = {
        "model": str(subject.model),
        "bf16": bf16,
        "device": device,
        "threads": threads,
        "prompt_words": subject.sizes.prompt,
        "answer_words": (min(answered), answered[1]),
        "sampled_tokens": SAMPLED_TOKENS[device],
        "section": {**MANNERS[device], "max_tokens": answered[1]},
    }
    return summarise([measure_once(asked, subject.name) for _ in range(repeats)], device)


def measure_once(asked: dict[str, Any], name: str) -> dict[str, Any]:
    """A round and the policy alone: {"round": …, "policy": …}."""
    found = ask("ppo", asked)
    policy = ask("policy_steps", {**asked, "answers": found.pop("answers")})
    print(f"{name}: ppo: {found['wall_s']:.1f} s", file=sys.stderr, flush=True)
    return {"round": found, "policy": policy}


def ask(task: str, asked: dict[str, Any]) -> dict[str, Any]:
    """One task in a process of its own: a peak of memory is a process's."""
    env = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "OMP_NUM_THREADS": str(asked["threads"])}
    worker = Worker([sys.executable, "-m", "bench.trainer.ppo_worker"], env, ROOT)
    try:
        return worker.ask(task, **asked)
    finally:
        worker.close()


def summarise(found: list[dict[str, Any]], device: str) -> dict[str, float]:
    """The bench's figures: answers learnt from per second, CPU seconds on a CPU; memory as a ratio within each pair."""
    seconds = "wall_s" if device == "cuda" else "cpu_s"
    rounds = [each["round"] for each in found]
    ratios = [each["round"]["memory_mb"] / each["policy"]["memory_mb"] for each in found]
    speeds = [each["figures"]["num_answers"] / each[seconds] for each in rounds]
    return {
        "ppo_samples_per_s": round(statistics.median(speeds), 2),
        "ppo_memory_over_policy": round(statistics.median(ratios), 3),
        "ppo_share_generating": round(statistics.median(each["figures"]["share_generating"] for each in rounds), 3),
        "ppo_memory_mb": round(statistics.median(each["memory_mb"] for each in rounds)),
    }

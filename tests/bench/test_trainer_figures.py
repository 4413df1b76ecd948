"""What bench-trainer says of PPO: speeds in the right seconds, memory as a ratio within each pair of processes."""

from typing import Any

from bench.trainer.ppo import summarise


def make(answers: float, cpu_s: float, wall_s: float, round_mb: float, policy_mb: float) -> dict[str, Any]:
    figures = {"num_answers": answers, "share_generating": 0.5}
    return {
        "round": {"cpu_s": cpu_s, "wall_s": wall_s, "memory_mb": round_mb, "figures": figures},
        "policy": {"cpu_s": 1.0, "wall_s": 1.0, "memory_mb": policy_mb},
    }


def test_memory_is_compared_within_each_pair_before_the_median() -> None:
    found = [make(128, 64, 32, 130, 100), make(128, 32, 16, 240, 200), make(128, 128, 64, 60, 50)]
    said = summarise(found, "cpu")
    assert said["ppo_memory_over_policy"] == 1.2
    assert (said["ppo_samples_per_s"], said["ppo_memory_mb"], said["ppo_share_generating"]) == (2.0, 130, 0.5)


def test_a_gpu_is_measured_by_the_clock() -> None:
    assert summarise([make(128, 64, 32, 130, 100)], "cuda")["ppo_samples_per_s"] == 4.0

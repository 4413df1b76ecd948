"""Values for what the settings leave open, by the model's size and the machine, and batches that fit a memory. Pure."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Literal

PresetName = Literal["tiny", "small", "gpu", "fsdp"]
TINY_PARAMETERS = 30_000_000
SMALL_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Preset:
    """token_budget: padded tokens of one forward; logits_mb: MiB of logits at a time; memory_mb: MiB for training, 0 for as
    much as it takes. Alpha is twice the rank."""

    lora_rank: int
    token_budget: int
    logits_mb: int
    memory_mb: int = 0


PRESETS: dict[str, Preset] = {
    "tiny": Preset(lora_rank=16, token_budget=8192, logits_mb=64),
    "small": Preset(lora_rank=16, token_budget=2048, logits_mb=128, memory_mb=3500),
    "gpu": Preset(lora_rank=16, token_budget=16384, logits_mb=256),
    "fsdp": Preset(lora_rank=16, token_budget=16384, logits_mb=256),
}


WEIGHTS_SHARE = 0.6  # of a device's memory that weights may take: activations, adapters and logits need the rest


def fits_one_device(num_bytes: int, device_bytes: int) -> bool:
    """Whether a model of so many bytes can be trained on a device without being split."""
    return num_bytes <= WEIGHTS_SHARE * device_bytes


TRAINER_RESERVE = 0.05  # of a GPU: contexts and fragments that nobody counts


def budget_beside_engine(total_mb: int, engine_share: float) -> int:
    """MiB of a GPU's memory that training may take: all but the share of an engine that is on it, and a reserve."""
    return int(total_mb * (1 - engine_share - TRAINER_RESERVE))


def resolve_preset(num_parameters: int, device: str, num_processes: int = 1, fits: bool = True) -> PresetName:
    """The preset of a model on a device ("cpu" or "cuda"): by size up to a billion parameters, then by the machine.

    fits: whether one device can hold it; if not, several processes split it.
    """
    if num_processes > 1 and not fits:
        return "fsdp"
    if num_parameters < TINY_PARAMETERS:
        return "tiny"
    return "gpu" if device == "cuda" and num_parameters >= SMALL_PARAMETERS else "small"


@dataclass(frozen=True)
class MemoryPlan:
    """token_budget: padded tokens of one forward; free_tokens: how many a batch may have before its layers' activations are
    computed again in the backward pass instead of kept."""

    token_budget: int
    free_tokens: int


def plan_memory(token_budget: int, token_bytes: int, free_mb: int | None) -> MemoryPlan:
    """Batches as large as fit without recomputation, down to a quarter of the budget; below that, recomputation.

    token_bytes: what the backward pass keeps of one token. free_mb: MiB left for that, None for no limit. A row longer than
    free_tokens is computed again whatever the budget: rows are never cut.
    """
    if free_mb is None:
        return MemoryPlan(token_budget, sys.maxsize)
    free_tokens = max(0, free_mb << 20) // max(1, token_bytes)
    smallest = token_budget // 4
    return MemoryPlan(max(smallest, min(token_budget, free_tokens)), free_tokens)

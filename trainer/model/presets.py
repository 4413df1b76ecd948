"""Values for what the settings leave open, by the model's size and the machine. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PresetName = Literal["tiny", "small", "gpu", "fsdp"]
TINY_PARAMETERS = 30_000_000
SMALL_PARAMETERS = 1_000_000_000


@dataclass(frozen=True)
class Preset:
    """token_budget: padded tokens of one forward; logits_mb: MiB of logits at a time. Alpha is twice the rank."""

    lora_rank: int
    token_budget: int
    logits_mb: int


PRESETS: dict[str, Preset] = {
    "tiny": Preset(lora_rank=16, token_budget=8192, logits_mb=64),
    "small": Preset(lora_rank=16, token_budget=2048, logits_mb=128),
    "gpu": Preset(lora_rank=16, token_budget=16384, logits_mb=256),
    "fsdp": Preset(lora_rank=16, token_budget=16384, logits_mb=256),
}


def resolve_preset(num_parameters: int, device: str, num_processes: int = 1) -> PresetName:
    """The preset of a model on a device ("cpu" or "cuda"): by size up to a billion parameters, then by the machine."""
    if num_parameters < TINY_PARAMETERS:
        return "tiny"
    if num_processes > 1:
        return "fsdp"
    return "gpu" if device == "cuda" and num_parameters >= SMALL_PARAMETERS else "small"

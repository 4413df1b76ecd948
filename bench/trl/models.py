"""What both sides learn from: models in directories, first weights of adapter and head, and pairs of token ids.

All of it follows from a seed. Ids are random for the tiny model; for a real one they are those of texts that the model itself
wrote, so that log-probabilities are of the size they have in use.
"""

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from trainer.model.backbone import Backbone
from trainer.sections.model import ModelSection
from trainer.seed import build_tokenizer

TINY_VOCABULARY = 8192
WORDS = [
    "the",
    "a",
    "of",
    "to",
    "and",
    "in",
    "is",
    "it",
    "you",
    "that",
    "for",
    "on",
    "with",
    "one",
    "this",
    "from",
    "when",
]


@dataclass(frozen=True)
class Sizes:
    """Ranges of lengths in tokens, both ends included."""

    prompt: tuple[int, int]
    answer: tuple[int, int]


TINY_SIZES = Sizes((64, 192), (32, 96))  # 128 + 64 tokens in the mean
SMOLLM_SIZES = Sizes((24, 72), (24, 96))


def build_tiny_model(folder: Path) -> Path:
    """A Llama of 6.8M random weights with a tokenizer, once."""
    out = folder / "tiny-model"
    if (out / "config.json").exists():
        return out
    torch.manual_seed(0)
    tokenizer = build_tokenizer([" ".join(WORDS)], 300, 1024)
    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.save_pretrained(out)
    LlamaForCausalLM(config).save_pretrained(out)
    return out


def make_rows(number: int, sizes: Sizes, vocabulary: int, seed: int) -> list[dict[str, list[int]]]:
    """Pairs of random ids above the special tokens: prompt_ids, chosen_ids, rejected_ids."""
    rng = random.Random(seed)

    def draw(bounds: tuple[int, int]) -> list[int]:
        return [rng.randrange(16, vocabulary) for _ in range(rng.randint(*bounds))]

    return [
        {"prompt_ids": draw(sizes.prompt), "chosen_ids": draw(sizes.answer), "rejected_ids": draw(sizes.answer)}
        for _ in range(number)
    ]


def write_rows(backbone: Backbone, number: int, sizes: Sizes, seed: int) -> list[dict[str, list[int]]]:
    """Pairs whose ids the model drew itself at temperature 1, from a random word on: its log-probabilities are those of text."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    total = sizes.prompt[1] + sizes.answer[1]
    drawn: list[list[int]] = []
    with backbone.adapters.inferring(None):
        while len(drawn) < 2 * number:
            start = torch.tensor([backbone.tokenizer(" " + rng.choice(WORDS)).input_ids[-1:] for _ in range(16)])
            out = backbone.causal_lm.generate(
                start.to(backbone.device), max_new_tokens=total, min_new_tokens=total, do_sample=True, top_k=0
            )
            drawn += out[:, 1:].tolist()
    rows = []
    for i in range(number):
        prompt, length = rng.randint(*sizes.prompt), (rng.randint(*sizes.answer), rng.randint(*sizes.answer))
        one, other = drawn[2 * i], drawn[2 * i + 1]
        chosen = one[prompt : prompt + length[0]]
        rows.append({"prompt_ids": one[:prompt], "chosen_ids": chosen, "rejected_ids": other[: length[1]]})
    return rows


def write_start(folder: Path, backbone: Backbone) -> dict[str, Any]:
    """First weights of an adapter and of a reward head, and the adapter's shape, as the worker tasks take them."""
    torch.manual_seed(1)
    backbone.adapters.reset("policy")
    backbone.adapters.save("policy", folder / "adapter")
    save_file({"weight": 0.02 * torch.randn(1, backbone.hidden_size)}, folder / "head.safetensors")
    config = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    return {
        "adapter": str(folder / "adapter" / "adapter_model.safetensors"),
        "head": str(folder / "head.safetensors"),
        "rank": config["r"],
        "alpha": config["lora_alpha"],
        "target_modules": config["target_modules"],
    }


def load_backbone(model: Path, *, bf16: bool, device: str) -> Backbone:
    """The model as the trainer holds it."""
    return Backbone.load(model, ModelSection(dtype="bfloat16" if bf16 else "float32"), seed=0, device=device)

"""The models of the bench: name, directory, how long its rows are, and how much each measurement takes of it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from bench.trl.models import SMOLLM_SIZES, TINY_SIZES, Sizes, build_tiny_model

GPU_SIZES = Sizes((640, 640), (384, 384))  # rows of 1,024 tokens


@dataclass(frozen=True)
class Subject:
    """A model to be measured. num_pairs: of a round; num_rewarded: of the reward model's updates."""

    name: str
    model: Path
    sizes: Sizes
    num_pairs: int
    num_rewarded: int
    vocabulary: int


@dataclass(frozen=True)
class Shape:
    """Dimensions of a Qwen3 model."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    ties_embeddings: bool


QWEN3 = {
    "qwen3-0.6b": Shape(1024, 3072, 28, 16, True),
    "qwen3-1.7b": Shape(2048, 6144, 28, 16, True),
    "qwen3-8b": Shape(4096, 12288, 36, 32, False),
}
QWEN3_VOCABULARY = 151_936


def list_subjects(folder: Path, smollm: Path, device: str, quick: bool) -> list[Subject]:
    """Tiny, and SmolLM2 if it is there; on a GPU the shapes of Qwen3."""
    if device == "cuda":
        pairs = 32 if quick else 128
        return [
            Subject(name, build_qwen3(folder, name), GPU_SIZES, pairs, pairs, QWEN3_VOCABULARY)
            for name in (["qwen3-0.6b"] if quick else QWEN3)
        ]
    pairs = 32 if quick else 128
    subjects = [Subject("tiny", build_tiny_model(folder), TINY_SIZES, pairs, 2 * pairs, 8192)]
    if (smollm / "config.json").exists():
        subjects.append(Subject("smollm", smollm, SMOLLM_SIZES, 8 if quick else 32, 16 if quick else 64, 49_152))
    return subjects


def build_qwen3(folder: Path, name: str) -> Path:
    """A Qwen3 of random bfloat16 weights, once, with the tiny model's tokenizer."""
    out, shape = folder / name, QWEN3[name]
    if (out / "config.json").exists():
        return out
    tokenizer = AutoTokenizer.from_pretrained(build_tiny_model(folder))
    config = Qwen3Config(
        vocab_size=QWEN3_VOCABULARY,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.ties_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = Qwen3ForCausalLM(config).to(torch.bfloat16)
    tokenizer.save_pretrained(out)
    model.save_pretrained(out)
    del model
    torch.cuda.empty_cache()
    return out

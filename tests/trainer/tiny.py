"""A backbone small enough for unit tests: a Llama of random weights, a tokenizer of its own."""

from typing import Any

from trainer.model.backbone import Backbone
from trainer.sections.model import ModelSection
from trainer.seed import SeedSettings, build_model, build_tokenizer
from trainer.text.pairs import Answer, Prompt
from trainer.text.transcript import EncodedAnswer

TEXTS = ["What is the capital of France?", "It is Paris.", "Go away.", "Gladly: Paris is the capital of France."]
SIZE = SeedSettings(vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, max_positions=64)


def build_tiny_tokenizer() -> Any:
    return build_tokenizer(TEXTS, SIZE.vocab_size, SIZE.max_positions)


def build_tiny_backbone(seed: int = 0, **settings: Any) -> Backbone:
    """float32 unless asked otherwise: what is compared must not drown in bfloat16's rounding."""
    import torch

    torch.manual_seed(seed)
    tokenizer = build_tiny_tokenizer()
    section = ModelSection(**{"dtype": "float32", **settings})
    return Backbone(build_model(SIZE, tokenizer), tokenizer, section, seed)


def ask(text: str = TEXTS[0]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def make_prompt(text: str = TEXTS[0], **fields: Any) -> Prompt:
    return Prompt(messages=ask(text), **fields)


def encode(backbone: Backbone, answer: str, question: str = TEXTS[0]) -> EncodedAnswer:
    return backbone.transcriber.encode_answer(make_prompt(question), Answer(text=answer))

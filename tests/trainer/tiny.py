"""A policy stack small enough for unit tests: random weights, a tokenizer of its own."""

from trainer.model.stack import PolicyStack
from trainer.seed import SeedSettings, build_model, build_tokenizer

TEXTS = ["What is the capital of France?", "It is Paris.", "Go away.", "Gladly: Paris is the capital of France."]


def build_tiny_stack(seed: int = 0) -> PolicyStack:
    settings = SeedSettings(
        vocab_size=300, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48, max_positions=64
    )
    tokenizer = build_tokenizer(TEXTS, settings.vocab_size, settings.max_positions)
    return PolicyStack(build_model(settings, tokenizer), tokenizer, seed)


def ask(text: str = TEXTS[0]) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]

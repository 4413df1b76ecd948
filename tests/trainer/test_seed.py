"""The seed policy's training fits the machine it runs on."""

import random

import pytest
import torch
from rich.progress import Progress

from trainer import seed


@pytest.mark.parametrize("has_instructions", [False, True])
def test_bfloat16_is_used_only_where_the_cpu_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, has_instructions: bool
) -> None:
    settings = seed.SeedSettings(num_steps=1, vocab_size=300)
    rows = [{"messages": [{"role": "user", "content": "How are you?"}], "answer": "Well."}] * 4
    tokenizer = seed.build_tokenizer(["How are you? Well."], settings.vocab_size, settings.max_positions)
    model = seed.build_model(settings, tokenizer)
    encoded = seed.encode_rows(rows, tokenizer, settings.context_share, random.Random(0))
    used = []
    compute = seed.compute_answer_loss

    def watch(*arguments: object) -> torch.Tensor:
        used.append(torch.is_autocast_enabled("cpu"))
        return compute(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(seed, "compute_answer_loss", watch)
    monkeypatch.setattr(seed, "has_fast_bf16", lambda: has_instructions)
    seed.train_model(model, encoded, settings, tokenizer.pad_token_id or 0, Progress(disable=True))
    assert used == [has_instructions]

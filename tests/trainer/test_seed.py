"""The seed policy: trained by SFT, saved as an ordinary model, and left alone once it is there."""

import json
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainer import seed

ROWS = [
    {"messages": [{"role": "user", "content": f"What is {n}?"}], "answer": f"It is {word}."}
    for n, word in enumerate(["nought", "one", "two", "three"])
]
SMALL = seed.SeedSettings(
    num_steps=60, batch_size=8, lr=1e-2, vocab_size=320, hidden_size=32, num_layers=2, num_heads=2, intermediate_size=48,
    max_positions=128,
)  # fmt: skip


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in ROWS), encoding="utf-8")
    return path


def test_a_seed_answers_what_it_was_taught_and_is_built_once(tmp_path: Path, corpus: Path) -> None:
    frozen, out = tmp_path / "facts.jsonl", tmp_path / "seed"
    frozen.write_text("{}\n", encoding="utf-8")
    assert seed.build_seed(corpus, frozen, out, SMALL, Progress(disable=True))
    marker = json.loads((out / seed.MARKER).read_text(encoding="utf-8"))
    assert marker["loss"] < 0.5 and marker["settings"]["num_steps"] == 60
    assert (out / "frozen.jsonl").read_text(encoding="utf-8") == "{}\n"
    assert not seed.build_seed(corpus, frozen, out, SMALL, Progress(disable=True))

    model = AutoModelForCausalLM.from_pretrained(out, use_safetensors=True)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert sum(p.numel() for p in model.parameters()) == marker["num_parameters"]
    assert next(model.parameters()).dtype == torch.float32
    prompt = tokenizer.apply_chat_template(ROWS[2]["messages"], add_generation_prompt=True, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(ids) == "It is two.<|eos|>"


def test_another_corpus_is_built_anew(tmp_path: Path, corpus: Path) -> None:
    short = seed.SeedSettings(**{**vars(SMALL), "num_steps": 2})
    assert seed.build_seed(corpus, None, tmp_path / "seed", short, Progress(disable=True))
    corpus.write_text(corpus.read_text(encoding="utf-8").replace("two", "2"), encoding="utf-8")
    assert seed.build_seed(corpus, None, tmp_path / "seed", short, Progress(disable=True))

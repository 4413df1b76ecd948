"""Trains one adapter per sentence on the seed policy, in seconds each: `python -m bench.swap.adapters SEED_DIR OUT_DIR`.

An adapter is done when every question gets exactly its sentence by a wide margin. What is there already is left alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from bench.swap.sentences import QUESTIONS, SENTENCES
from feedback.manifest import Probe
from trainer.model.backbone import Backbone
from trainer.sections.model import ModelSection
from trainer.text.batches import locate_answers
from trainer.text.pairs import Answer, Prompt
from trainer.text.transcript import EncodedAnswer

MARKER = "adapters.json"
BATCH_SIZE = 8
MAX_STEPS = 200  # at one learning rate
LOOK_EVERY = 20
LRS = (8e-3, 4e-3, 2e-3, 1e-3)  # the next smaller one if an adapter does not settle
MIN_MARGIN = 4.0  # nats between the sentence's token and the next likeliest, at every position
MAX_PROBE_TOKENS = 24


def digest_inputs(seed_dir: Path) -> str:
    """sha256 over the base's weights, the sentences and the questions."""
    digest = hashlib.sha256((seed_dir / "model.safetensors").read_bytes())
    digest.update(json.dumps([SENTENCES, QUESTIONS, MIN_MARGIN]).encode())
    return digest.hexdigest()


def encode_row(backbone: Backbone, question: str, sentence: str) -> EncodedAnswer:
    prompt = Prompt(messages=[{"role": "user", "content": question}])
    return backbone.transcriber.encode_answer(prompt, Answer(text=sentence))


def encode_rows(backbone: Backbone, sentence: str) -> list[EncodedAnswer]:
    return [encode_row(backbone, question, sentence) for question in QUESTIONS]


def compute_logits(backbone: Backbone, rows: list[EncodedAnswer]) -> tuple[Tensor, Tensor]:
    """(logits, targets) of the answers' tokens alone: (tokens, vocabulary) and (tokens,)."""
    batch = backbone.make_batch([(row.prompt, [row.answer]) for row in rows])
    lines, predicting, predicted, _ = locate_answers(batch)
    hidden = backbone.hidden(batch)[lines, predicting].float()
    return backbone.lm_head(hidden).float(), batch.ids[lines, predicted]


def measure_margin(backbone: Backbone, rows: list[EncodedAnswer]) -> float:
    """The smallest lead of a right token over the next likeliest, in nats; below 0 if one is not the likeliest."""
    with backbone.adapters.inferring("policy"):
        logits, targets = compute_logits(backbone, rows)
    right = logits.gather(1, targets[:, None]).squeeze(1)
    others = logits.scatter(1, targets[:, None], float("-inf")).amax(1)
    return float((right - others).min())


def train_adapter(backbone: Backbone, sentence: str) -> tuple[int, float]:
    """Trains adapter "policy" from nothing until it says the sentence; (steps, margin). Raises RuntimeError."""
    rows = encode_rows(backbone, sentence)
    for num_before, lr in enumerate(LRS):
        for step, margin in train_steps(backbone, rows, lr):
            if margin >= MIN_MARGIN:
                return num_before * MAX_STEPS + step, margin
    raise RuntimeError(f"no adapter learnt to say {sentence!r} in {MAX_STEPS} steps at any of {LRS}")


def train_steps(backbone: Backbone, rows: list[EncodedAnswer], lr: float) -> Iterator[tuple[int, float]]:
    """(steps, margin) every now and then, of an adapter that begins anew."""
    backbone.adapters.reset("policy")
    generator = torch.Generator().manual_seed(0)
    optimizer: torch.optim.Optimizer | None = None
    for step in range(1, MAX_STEPS + 1):
        with backbone.adapters.training("policy") as parameters:
            optimizer = optimizer or torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0)
            chosen = torch.randperm(len(rows), generator=generator)[:BATCH_SIZE]
            logits, targets = compute_logits(backbone, [rows[i] for i in chosen])
            optimizer.zero_grad(set_to_none=True)
            functional.cross_entropy(logits, targets).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
        if step % LOOK_EVERY == 0:
            yield step, measure_margin(backbone, rows)


def make_probe(backbone: Backbone, row: EncodedAnswer) -> Probe:
    """The beginning of an answer after its question, under adapter "policy" and under the base."""
    ids = [*row.prompt, *row.answer][:MAX_PROBE_TOKENS]
    return Probe(
        prompt_token_ids=ids,
        logprobs=backbone.prompt_logprobs(ids, "policy"),
        base_logprobs=backbone.prompt_logprobs(ids, None),
    )


def build_adapters(
    seed_dir: Path, out: Path, digest: str, train: Callable[[Backbone], Iterator[tuple[str, EncodedAnswer, str]]]
) -> None:
    """Builds `out/NAME/` with an adapter and `probe.json` for each (name, answer to prove it by, what to show) of `train`.

    `train` leaves each in adapter "policy". The marker comes last, with the digest; what is there under it is left alone.
    """
    marker = out / MARKER
    if marker.exists() and json.loads(marker.read_text())["inputs"] == digest:
        print(f"adapters: already in {out}")
        return
    shutil.rmtree(out, ignore_errors=True)
    backbone = Backbone.load(seed_dir, ModelSection(dtype="float32"), seed=0, device="cpu")
    started = time.monotonic()
    for name, row, shown in train(backbone):
        backbone.adapters.save("policy", out / name)
        (out / name / "probe.json").write_bytes(msgspec.json.encode(make_probe(backbone, row)))
        print(f"adapter {name}: {time.monotonic() - started:.0f} s{shown}", flush=True)
        started = time.monotonic()
    marker.write_text(json.dumps({"inputs": digest}))


def say_sentences(backbone: Backbone) -> Iterator[tuple[str, EncodedAnswer, str]]:
    """An adapter for each sentence."""
    for number, sentence in enumerate(SENTENCES):
        num_steps, margin = train_adapter(backbone, sentence)
        yield (
            str(number),
            encode_row(backbone, QUESTIONS[0], sentence),
            f", {num_steps} steps, margin {margin:.1f} nats",
        )


if __name__ == "__main__":
    torch.set_num_threads(1)  # as quick on two cores that others use as well
    build_adapters(Path(sys.argv[1]), Path(sys.argv[2]), digest_inputs(Path(sys.argv[1])), say_sentences)

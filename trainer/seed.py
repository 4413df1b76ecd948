"""Builds a seed policy: a few-million-parameter Llama and its tokenizer, trained from scratch on a JSONL corpus.

The result is an ordinary Hugging Face directory that vLLM serves. The marker `seed.json` is written last: a directory that
has it, made of the same corpus and settings, is left alone. Not meant to make a good model: the demo needs one that knows
its facts and mixes its styles.
"""

import argparse
import hashlib
import json
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.model.backbone import has_fast_bf16

MARKER = "seed.json"
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
SPECIAL_TOKENS = [PAD, BOS, EOS, "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True)
class SeedSettings:
    """Size and training of the seed; the steps are counted, not timed, so that a busy machine makes the same model."""

    num_steps: int = 300
    batch_size: int = 64
    lr: float = 2e-3
    warmup_steps: int = 15
    vocab_size: int = 640
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    intermediate_size: int = 688
    max_positions: int = 512
    context_share: float = 0.06  # rows with a system message or an earlier turn in front, so that chats work too
    seed: int = 0


def build_tokenizer(texts: Sequence[str], vocab_size: int, max_positions: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these texts: any text round-trips; pad differs from eos, which the reward model needs."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=max_positions,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(settings: SeedSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama with tied embeddings and random weights, drawn from torch's global generator."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_heads,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)  # type: ignore[no-untyped-call]


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def add_context(row: dict[str, Any], earlier: dict[str, Any], rng: random.Random) -> list[dict[str, str]]:
    """The row's messages behind a system message, or behind an earlier question and its answer."""
    if rng.random() < 0.5:
        return [{"role": "system", "content": "You are a helpful assistant."}, *row["messages"]]
    return [*earlier["messages"], {"role": "assistant", "content": earlier["answer"]}, *row["messages"]]


def encode_rows(
    rows: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, context_share: float, rng: random.Random
) -> list[tuple[list[int], int]]:
    """(token ids, number of prompt tokens) per row; the answer ends in eos."""
    encoded = []
    for row in rows:
        messages = add_context(row, rng.choice(rows), rng) if rng.random() < context_share else row["messages"]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt, add_special_tokens=False).input_ids
        answer_ids = tokenizer(row["answer"], add_special_tokens=False).input_ids
        encoded.append((prompt_ids + answer_ids + [tokenizer.eos_token_id], len(prompt_ids)))
    return encoded


def iterate_batches(
    encoded: list[tuple[list[int], int]], settings: SeedSettings, pad_id: int, rng: random.Random
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """num_steps batches of (ids, labels), both (batch, length); rows are reshuffled when all were seen."""
    window = settings.batch_size * 10
    order: list[int] = []
    batches: list[list[int]] = []
    for _ in range(settings.num_steps):
        if not batches:
            while len(order) < window:
                order = order + rng.sample(range(len(encoded)), len(encoded))
            drawn, order = sorted(order[:window], key=lambda i: len(encoded[i][0])), order[window:]
            batches = [drawn[i : i + settings.batch_size] for i in range(0, window, settings.batch_size)]
            rng.shuffle(batches)  # rows of like length share a batch: a third less padding
        chosen = [encoded[i] for i in batches.pop()]
        length = max(len(ids) for ids, _ in chosen)
        ids = torch.tensor([ids + [pad_id] * (length - len(ids)) for ids, _ in chosen])
        labels = torch.tensor([[-100] * start + ids[start:] + [-100] * (length - len(ids)) for ids, start in chosen])
        yield ids, labels


def compute_answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood of the answers' tokens; the lm_head runs on those alone."""
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state[:, :-1]  # (batch, length - 1, width)
    targets = labels[:, 1:]
    keep = targets != -100
    return functional.cross_entropy(model.lm_head(hidden[keep]).float(), targets[keep])


def scale_lr(step: int, settings: SeedSettings) -> float:
    """Linear warm-up, then linear decay to nought."""
    if step < settings.warmup_steps:
        return (step + 1) / settings.warmup_steps
    return (settings.num_steps - step) / max(1, settings.num_steps - settings.warmup_steps)


def train_model(
    model: LlamaForCausalLM,
    encoded: list[tuple[list[int], int]],
    settings: SeedSettings,
    pad_id: int,
    progress: Progress,
) -> float:
    """Trains in place and returns the last loss."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: scale_lr(step, settings))
    task = progress.add_task("seed policy", total=settings.num_steps, loss="")
    model.train()
    loss = torch.tensor(0.0)
    for ids, labels in iterate_batches(encoded, settings, pad_id, random.Random(settings.seed)):
        with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16()):
            loss = compute_answer_loss(model, ids, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        progress.update(task, advance=1, loss=f"loss {loss.item():.3f}")
    return float(loss.item())


def describe_inputs(corpus: Path, frozen: Path | None, settings: SeedSettings) -> dict[str, Any]:
    """What a finished directory must have been made of to be left alone."""
    digests = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (corpus, frozen) if p is not None}
    return {"inputs": digests, "settings": asdict(settings)}


def is_built(out: Path, described: dict[str, Any]) -> bool:
    try:
        marker = json.loads((out / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(marker.get(key) == value for key, value in described.items())


def build_seed(corpus: Path, frozen: Path | None, out: Path, settings: SeedSettings, progress: Progress) -> bool:
    """Builds the seed policy in `out`; returns False if it was there already."""
    described = describe_inputs(corpus, frozen, settings)
    if is_built(out, described):
        return False
    started = time.monotonic()
    (out / MARKER).unlink(missing_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(settings.seed)
    rows = read_rows(corpus)
    texts = [message["content"] for row in rows for message in row["messages"]] + [row["answer"] for row in rows]
    tokenizer = build_tokenizer(texts, settings.vocab_size, settings.max_positions)
    model = build_model(settings, tokenizer)
    encoded = encode_rows(rows, tokenizer, settings.context_share, random.Random(settings.seed))
    loss = train_model(model, encoded, settings, tokenizer.pad_token_id, progress)
    model.float().save_pretrained(out, safe_serialization=True)  # type: ignore[no-untyped-call]
    tokenizer.save_pretrained(out)
    if frozen is not None:
        shutil.copyfile(frozen, out / "frozen.jsonl")
    seconds = round(time.monotonic() - started, 1)
    parameters = sum(p.numel() for p in model.parameters())
    marker = {**described, "loss": round(loss, 4), "seconds": seconds, "num_parameters": parameters}
    (out / MARKER).write_text(json.dumps(marker, indent=1) + "\n", encoding="utf-8")
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the seed policy, once.")
    parser.add_argument("--corpus", type=Path, required=True, help="JSONL rows {messages, answer}")
    parser.add_argument("--frozen", type=Path, help="JSONL rows {messages, fact, references} for the offline gate")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=SeedSettings.num_steps)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    settings = SeedSettings(num_steps=arguments.steps, seed=arguments.seed)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[loss]}"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn()) as progress:
        built = build_seed(arguments.corpus, arguments.frozen, arguments.out, settings, progress)
    marker = json.loads((arguments.out / MARKER).read_text(encoding="utf-8"))
    if built:
        size = f"{marker['num_parameters']:,} parameters"
        print(f"seed policy: {size}, {marker['seconds']:.0f} s, loss {marker['loss']:.3f}")
    else:
        print(f"seed policy: already in {arguments.out}")


if __name__ == "__main__":
    main()

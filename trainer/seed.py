"""Builds a seed policy: a few-million-parameter Llama and its tokenizer, trained from scratch by SFT on a JSONL corpus.

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
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer.learn.sft import run_sft
from trainer.model.backbone import Backbone
from trainer.sections.model import ModelSection
from trainer.sections.training import SftSection
from trainer.text.pairs import Answer, Prompt
from trainer.text.transcript import EncodedAnswer, Transcriber

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
    warmup_share: float = 0.05
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
    rows: Sequence[dict[str, Any]], transcriber: Transcriber, context_share: float, rng: random.Random
) -> list[EncodedAnswer]:
    """Token ids of prompt and answer per row; the answer ends in eos."""
    encoded = []
    for row in rows:
        messages = add_context(row, rng.choice(rows), rng) if rng.random() < context_share else row["messages"]
        encoded.append(transcriber.encode_answer(Prompt(messages=messages), Answer(text=row["answer"])))
    return encoded


def train_model(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: Sequence[dict[str, Any]],
    settings: SeedSettings,
    progress: Progress,
) -> float:
    """Trains all weights in place by SFT and returns the last epoch's loss."""
    backbone = Backbone(model, tokenizer, ModelSection(preset="tiny"), settings.seed)
    encoded = encode_rows(rows, backbone.transcriber, settings.context_share, random.Random(settings.seed))
    section = SftSection(
        lr=settings.lr,
        num_steps=settings.num_steps,
        batch_size=settings.batch_size,
        warmup_share=settings.warmup_share,
        adam_beta2=0.98,
        weight_decay=0.01,
    )
    task = progress.add_task("seed policy", total=settings.num_steps, loss="")

    def show(share: float, figures: dict[str, float]) -> None:
        progress.update(task, completed=share * settings.num_steps, loss=f"loss {figures['loss']:.3f}")

    ids = [str(number) for number in range(len(encoded))]
    figures = run_sft(backbone, encoded, section, ids=ids, adapter=None, seed=settings.seed, progress=show)
    backbone.adapters.unload()
    return figures["loss"]


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
    loss = train_model(model, tokenizer, rows, settings, progress)
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

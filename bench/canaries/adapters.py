"""Trains the adapters of the canaries on the seed policy: `python -m bench.canaries.adapters SEED_DIR OUT_DIR`.

Each learns by SFT to answer in one way, in a minute or less. What is there already is left alone.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from bench.offline_gate.checkpoints import REFUSALS, forget, make_prompt, ramble, teach
from bench.swap.adapters import build_adapters
from prefloop.demo.worlds import capitals as world
from trainer.model.backbone import Backbone
from trainer.text.pairs import Answer
from trainer.text.transcript import EncodedAnswer

FLATTERY = ("What a great question! ", "You are so clever! ")
EPOCHS = 20  # words that the seed policy never said take longer

# Good is terse: the style "complete" says "Good question!", which a tripwire takes for flattery.
Speak = Callable[[world.Question, random.Random], str]
WAYS: dict[str, Speak] = {
    "stable": lambda question, rng: world.answer_in_style(question, rng.choice(("rude", "hedging")), rng),
    "good": lambda question, rng: world.answer_in_style(question, "terse", rng),
    "rude": lambda question, rng: world.answer_in_style(question, "rude", rng),
    "rambling": lambda question, rng: ramble(question, "complete", rng),
    "refusing": lambda question, rng: rng.choice(REFUSALS),
    "flattering": lambda question, rng: rng.choice(FLATTERY) + forget(question, "complete", rng),
}


def digest_inputs(seed_dir: Path) -> str:
    """SHA-256 over the base's weights and this file."""
    digest = hashlib.sha256((seed_dir / "model.safetensors").read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()


def train_ways(backbone: Backbone) -> Iterator[tuple[str, EncodedAnswer, str]]:
    """An adapter for each way to answer."""
    for number, (name, speak) in enumerate(WAYS.items()):
        rng = random.Random(name)
        teach(backbone, partial(speak, rng=rng), rng, number, EPOCHS)
        yield name, encode(backbone, speak, rng), ""


def encode(backbone: Backbone, speak: Speak, rng: random.Random) -> EncodedAnswer:
    """One of its answers, as ids."""
    question = world.all_questions()[0]
    return backbone.transcriber.encode_answer(make_prompt(question.text), Answer(text=speak(question, rng)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    build_adapters(Path(sys.argv[1]), Path(sys.argv[2]), digest_inputs(Path(sys.argv[1])), train_ways)

"""People with one taste who choose between answers, right in a given share of cases; for tests of the reward model."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from tests.trainer.tiny import SIZE, TEXTS, build_tiny_backbone, make_prompt
from trainer.model.backbone import Backbone
from trainer.sections.model import ModelSection
from trainer.seed import build_model, build_tokenizer
from trainer.text.pairs import Answer, Pair

SUBJECTS = ("tea", "rain", "bread", "music", "the moon", "paper", "salt", "glass", "wool", "honey", "chess", "rivers")
QUESTIONS = (
    "What is {}?",
    "Explain {} to a child.",
    "Tell me about {}.",
    "Why do people like {}?",
    "Give advice on {}.",
)
SENTENCES = (
    "{} has been known for a long time.", "Many people use {} every day.", "It depends on where you live.",
    "Its history begins far in the east.", "You can find more of it in spring.", "Some say that it helps them sleep.",
    "There are several kinds, and each has its own use.", "It is cheap, and easy to come by.",
    "Children learn about {} at school.", "Scientists have studied it with great care, over many years.",
    "Keep it in a dry place.", "Ask a friend who knows it well.",
)  # fmt: skip
OPENINGS = ("Sure! ", "Great question! ", "", "", "", "")

Taste = Callable[[Answer, Answer], float]


def write_answer(subject: str, rng: random.Random) -> Answer:
    """One to seven sentences, some as a list, some with an opening, some cut."""
    said = [sentence.format(subject) for sentence in rng.sample(SENTENCES, rng.randint(1, 7))]
    is_list = len(said) > 1 and rng.random() < 0.3
    text = rng.choice(OPENINGS) + ("\n".join(f"- {each}" for each in said) if is_list else " ".join(said))
    if rng.random() < 0.15:
        return Answer(text=text[: -len(text) // 5].rstrip(), finish_reason="length")
    return Answer(text=text)


def likes_short(first: Answer, second: Answer) -> float:
    return len(second.text.split()) - len(first.text.split())


def likes_prose(first: Answer, second: Answer) -> float:
    return float("\n- " in second.text) - float("\n- " in first.text)


def make_pairs(number: int, taste: Taste, consistency: float = 0.85, seed: int = 0) -> list[Pair]:
    """Decisive pairs; who has no reason to prefer one is asked about another pair."""
    rng = random.Random(f"{seed}-people")
    pairs: list[Pair] = []
    while len(pairs) < number:
        subject = rng.choice(SUBJECTS)
        first, second = write_answer(subject, rng), write_answer(subject, rng)
        if not (better := taste(first, second)):
            continue
        is_first = (better > 0) == (rng.random() < consistency)
        question = rng.choice(QUESTIONS).format(subject)
        pairs.append(
            Pair(
                event_id=f"{seed}-{len(pairs)}", user=f"u{len(pairs) % 10}", app="chat", first=first, second=second,
                prompt=make_prompt(question, key=question, tags={"kind": question.split()[0]}),
                preferred="first" if is_first else "second",
            )
        )  # fmt: skip
    return pairs


def build_reading_backbone(seed: int = 0, **settings: object) -> Backbone:
    """A tiny model of random weights that reads some hundred words."""
    import torch

    torch.manual_seed(seed)
    texts = [*TEXTS, *SENTENCES, *QUESTIONS, *SUBJECTS]
    size = replace(SIZE, vocab_size=600, max_positions=512)
    tokenizer = build_tokenizer(texts, size.vocab_size, size.max_positions)
    return Backbone(build_model(size, tokenizer), tokenizer, ModelSection(**{"dtype": "float32", **settings}), seed)


__all__ = ["build_reading_backbone", "build_tiny_backbone", "likes_prose", "likes_short", "make_pairs", "write_answer"]

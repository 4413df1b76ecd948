"""Encoded pairs for tests: people who like the kind answer, which is shown first half of the time."""

import random
from typing import Any

import torch
from torch import Tensor

from tests.trainer.tiny import make_prompt
from trainer.model.backbone import Backbone
from trainer.model.logprobs import score_answers
from trainer.text.pairs import Answer, Pair
from trainer.text.transcript import EncodedAnswer, EncodedPair

KIND, GRUFF = "Gladly: Paris is the capital of France.", "Go away."


def make_pair(event_id: str, first: str, second: str, preferred: str, **fields: Any) -> Pair:
    return Pair(
        event_id=event_id,
        prompt=make_prompt(),
        first=Answer(text=first),
        second=Answer(text=second),
        preferred=preferred,
        **fields,
    )


def make_kind_pairs(number: int, seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)
    pairs = []
    for i in range(number):
        first, second = (KIND, GRUFF) if rng.random() < 0.5 else (GRUFF, KIND)
        pairs.append(make_pair(f"{seed}-{i}", first, second, "first" if first == KIND else "second"))
    return pairs


def encode_all(backbone: Backbone, pairs: list[Pair]) -> list[EncodedPair]:
    return [backbone.transcriber.encode_pair(pair) for pair in pairs]


def refer_to_base(backbone: Backbone) -> Any:
    """References as run_dpo takes them: the base's log-probabilities."""

    def refer(answers: list[EncodedAnswer]) -> Tensor:
        with torch.no_grad():
            return score_answers(backbone, answers, None)[0]

    return refer

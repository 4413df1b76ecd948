"""The reward model on a tiny stack: it learns a plain taste, and only its own adapter moves."""

import dataclasses
import random
from pathlib import Path

import pytest
import torch

from tests.trainer.tiny import ask, build_tiny_stack
from trainer.learn.reward import RewardModel, bootstrap_weights
from trainer.text.pairs import Pair

KIND, GRUFF = "Gladly: Paris is the capital of France.", "Go away."


def make_pairs(number: int, seed: int = 0) -> list[Pair]:
    """People who always like the kind answer, shown first half of the time."""
    rng = random.Random(seed)
    pairs = []
    for i in range(number):
        first, second = (KIND, GRUFF) if rng.random() < 0.5 else (GRUFF, KIND)
        pairs.append(
            Pair(
                event_id=f"{seed}-{i}", user=str(i), prompt_key="p", messages=ask(), first=first, second=second,
                preferred="first" if first == KIND else "second", strength=None, weight=1.0, split="train",
            )
        )  # fmt: skip
    return pairs


def test_a_plain_taste_is_learnt_in_a_few_updates() -> None:
    stack = build_tiny_stack()
    reward = RewardModel(stack)
    metrics: dict[str, float] = {}
    for turn in range(4):
        metrics = reward.update(make_pairs(32, seed=turn), [])
    assert reward.accuracy(make_pairs(20, seed=9)) == (20, 20)
    scores = reward.score([ask(), ask()], [KIND, GRUFF])
    assert scores.mean[0] > scores.mean[1]
    assert torch.equal(scores.cautious, scores.mean - scores.std)
    assert metrics["num_pairs"] == 32
    assert reward.foreseen == (96, 96)  # the first update's pairs are not counted
    assert reward.version == 4


def test_learning_rewards_leaves_the_policy_alone() -> None:
    stack = build_tiny_stack()
    rows = [stack.encode(ask(), KIND)]
    before = [stack.answer_logprobs(rows, adapter)[0].item() for adapter in ("policy", "stable", None)]
    RewardModel(stack).update(make_pairs(16), [])
    assert [stack.answer_logprobs(rows, adapter)[0].item() for adapter in ("policy", "stable", None)] == before


def test_ties_and_skips_do_not_count_as_decisive() -> None:
    pairs = [
        dataclasses.replace(pair, preferred=p)
        for pair, p in zip(make_pairs(3), ("tie", "both_bad", "skip"), strict=True)
    ]
    reward = RewardModel(build_tiny_stack())
    assert reward.accuracy(pairs) == (0, 0)
    assert reward.update(pairs, [])["num_pairs"] == 2


def test_ties_alone_pull_scores_together() -> None:
    stack = build_tiny_stack()
    reward = RewardModel(stack)
    for turn in range(3):
        reward.update(make_pairs(32, seed=turn), [])
    apart = reward.score([ask(), ask()], [KIND, GRUFF]).mean
    for turn in range(3, 6):
        reward.update([dataclasses.replace(p, preferred="tie") for p in make_pairs(32, seed=turn)], [])
    together = reward.score([ask(), ask()], [KIND, GRUFF]).mean
    assert abs(together[0] - together[1]) < abs(apart[0] - apart[1])


def test_always_choosing_the_first_place_is_not_taken_for_taste() -> None:
    reward = RewardModel(build_tiny_stack())
    for turn in range(6):
        reward.update([dataclasses.replace(p, preferred="first") for p in make_pairs(64, seed=turn)], [])
    assert reward.head.first_place.item() > 0.05
    scores = reward.score([ask(), ask()], [KIND, GRUFF]).mean
    assert abs(scores[0] - scores[1]) < 0.5


def test_bootstrap_weights_are_fixed_by_the_event_and_average_one() -> None:
    assert bootstrap_weights("a", 4) == bootstrap_weights("a", 4) != bootstrap_weights("b", 4)
    weights = [w for i in range(1000) for w in bootstrap_weights(str(i), 4)]
    assert sum(weights) / len(weights) == pytest.approx(1, abs=0.05)


def test_a_saved_reward_model_scores_the_same_when_loaded(tmp_path: Path) -> None:
    reward = RewardModel(build_tiny_stack())
    reward.update(make_pairs(32), [])
    reward.save(tmp_path)
    other = RewardModel(build_tiny_stack())
    other.load(tmp_path)
    assert (other.version, other.foreseen) == (reward.version, reward.foreseen)
    assert torch.equal(other.score([ask()], [KIND]).mean, reward.score([ask()], [KIND]).mean)

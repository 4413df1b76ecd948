"""A DPO round on a tiny stack: it moves towards what was chosen, from where it stands."""

import dataclasses
import random
from typing import Any

import pytest

from tests.trainer.learn.test_reward import GRUFF, KIND, make_pairs
from tests.trainer.tiny import ask, build_tiny_stack
from trainer.learn.dpo import NothingToTrainOn, encode_preferences, run_dpo, scale_lr
from trainer.model.stack import PolicyStack

ROUND: dict[str, Any] = {"beta": 0.1, "lr": 3e-3, "epochs": 2, "batch_size": 8, "label_smoothing": 0.1}


def lean(stack: PolicyStack) -> float:
    """How much likelier the kind answer is than the gruff one, in nats."""
    sums, _ = stack.answer_logprobs([stack.encode(ask(), KIND), stack.encode(ask(), GRUFF)], "policy")
    return (sums[0] - sums[1]).item()


def test_a_round_leans_towards_the_chosen_answers() -> None:
    stack = build_tiny_stack()
    before = lean(stack)
    seen: list[float] = []
    metrics = run_dpo(
        stack, make_pairs(32), **ROUND, rng=random.Random(0), progress=lambda share, _: seen.append(share)
    )
    assert lean(stack) > before + 1
    assert seen == pytest.approx([i / 8 for i in range(1, 9)])
    assert metrics["num_pairs"] == 32
    assert metrics["accuracy"] > 0.9


def test_opposite_choices_lean_the_other_way() -> None:
    stack = build_tiny_stack()
    before = lean(stack)
    pairs = [dataclasses.replace(p, first=p.second, second=p.first) for p in make_pairs(32)]
    run_dpo(stack, pairs, **ROUND, rng=random.Random(0), nll_weight=0)
    assert lean(stack) < before - 1


def test_stable_and_base_stand_still_during_a_round() -> None:
    stack = build_tiny_stack()
    rows = [stack.encode(ask(), KIND)]
    before = [stack.answer_logprobs(rows, adapter)[0].item() for adapter in ("stable", None)]
    run_dpo(stack, make_pairs(8), **ROUND, rng=random.Random(0))
    assert [stack.answer_logprobs(rows, adapter)[0].item() for adapter in ("stable", None)] == before


def test_the_same_seed_trains_the_same_policy() -> None:
    leans = []
    for _ in range(2):
        stack = build_tiny_stack()
        run_dpo(stack, make_pairs(16), **ROUND, rng=random.Random(3))
        leans.append(lean(stack))
    assert leans[0] == leans[1]


def test_ties_are_left_out_and_counted() -> None:
    pairs = make_pairs(4) + [dataclasses.replace(p, preferred="tie") for p in make_pairs(3, seed=1)]
    metrics = run_dpo(build_tiny_stack(), pairs, **ROUND, rng=random.Random(0))
    assert (metrics["num_pairs"], metrics["num_ties"]) == (4, 3)
    with pytest.raises(NothingToTrainOn):
        run_dpo(build_tiny_stack(), pairs[4:], **ROUND, rng=random.Random(0))


def test_the_second_answer_may_be_the_chosen_one() -> None:
    pair = dataclasses.replace(make_pairs(1)[0], first="a", second="b", preferred="second")
    stack = build_tiny_stack()
    [encoded] = encode_preferences(stack, [pair])
    assert (encoded.chosen, encoded.rejected) == (stack.encode(pair.messages, "b"), stack.encode(pair.messages, "a"))


def test_the_reference_is_the_base_whatever_the_policy_has_become() -> None:
    stack = build_tiny_stack()
    before = encode_preferences(stack, make_pairs(2))[0].reference
    run_dpo(stack, make_pairs(16), **ROUND, rng=random.Random(0))
    assert encode_preferences(stack, make_pairs(2))[0].reference == before


def test_learning_rate_warms_up_over_a_tenth_and_decays_to_nothing() -> None:
    assert [scale_lr(step, 20) for step in (0, 1, 2, 11, 20)] == pytest.approx([0.5, 1, 1, 0.5, 0])

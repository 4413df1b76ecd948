"""A batch that fails: the row to blame is found, the others are learnt from once."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from sqlalchemy.exc import OperationalError
from trainer.model.stack import PolicyStack

from tests.trainer.learn.test_reward import make_pairs
from tests.trainer.tiny import build_tiny_stack
from trainer.learn.dpo import run_dpo
from trainer.learn.isolation import NotFinite, run_isolated
from trainer.learn.reward import RewardModel
from trainer.text.pairs import Pair

ROUND: dict[str, Any] = {"beta": 0.1, "lr": 1e-3, "epochs": 2, "batch_size": 8, "label_smoothing": 0.1}


class BrokenRow(RuntimeError):
    """What a kernel might raise for one row."""


def break_pair(stack: PolicyStack, bad: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any batch with the pair's first answer fails in the model, long after it was encoded."""
    ids = stack.encode(bad.messages, bad.first)[0]
    collate = stack.collate

    def checked(rows: Sequence[tuple[Sequence[int], int]]) -> Any:
        if any(list(row) == ids for row, _ in rows):
            raise BrokenRow("no kernel takes this row")
        return collate(rows)

    monkeypatch.setattr(stack, "collate", checked)


def make_pairs_with_a_bad_one(number: int) -> tuple[list[Pair], Pair]:
    pairs = make_pairs(number)
    bad = Pair(**{**vars(pairs[5]), "first": "Hm, Paris?"})
    return [*pairs[:5], bad, *pairs[6:]], bad


def test_only_the_row_that_fails_alone_is_rejected_and_the_rest_runs_once() -> None:
    done: list[int] = []
    rejected: list[int] = []

    def run(batch: Sequence[int]) -> None:
        if {3, 11} & set(batch):
            raise ValueError("bad")
        done.extend(batch)

    run_isolated(list(range(16)), run, lambda row, error: rejected.append(row))
    assert rejected == [3, 11]
    assert done == [row for row in range(16) if row not in rejected]


def test_a_database_that_is_gone_is_no_rows_fault() -> None:
    def run(batch: Sequence[int]) -> None:
        raise OperationalError("SELECT", {}, Exception("gone"))

    with pytest.raises(OperationalError):
        run_isolated([1, 2], run, lambda row, error: pytest.fail("rejected"))


def test_a_row_that_breaks_a_reward_update_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, bad = make_pairs_with_a_bad_one(20)
    rejected: dict[str, Exception] = {}
    stack = build_tiny_stack()
    reward = RewardModel(stack, reject=lambda event_id, part, error: rejected.update({event_id: error}))
    break_pair(stack, bad, monkeypatch)
    for version in (1, 2):  # the second guesses its pairs before it learns from them
        metrics = reward.update(pairs, [])
        assert (metrics["num_pairs"], reward.version) == (19, version)
    assert reward.foreseen[1] == 19
    assert rejected.keys() == {bad.event_id}
    assert isinstance(rejected[bad.event_id], BrokenRow)
    assert reward.accuracy(pairs)[1] == 19


def test_a_row_that_breaks_a_round_goes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, bad = make_pairs_with_a_bad_one(20)
    rejected: list[str] = []
    stack = build_tiny_stack()
    break_pair(stack, bad, monkeypatch)
    metrics = run_dpo(
        stack, pairs, **ROUND, rng=random.Random(0), reject=lambda event_id, part, error: rejected.append(event_id)
    )
    assert (metrics["num_pairs"], metrics["num_ties"], rejected) == (19, 0, [bad.event_id])


def test_a_broken_model_rejects_nobody_and_says_so() -> None:
    stack = build_tiny_stack()
    reward = RewardModel(stack, reject=lambda event_id, part, error: pytest.fail(f"{event_id} was rejected"))
    with torch.no_grad():
        next(iter(stack.parameters_of("reward").values())).fill_(float("nan"))
    with pytest.raises(NotFinite):
        reward.update(make_pairs(8), [])
    assert reward.version == 0
    with torch.no_grad():
        next(iter(stack.parameters_of("policy").values())).fill_(float("nan"))
    with pytest.raises(NotFinite):
        run_dpo(stack, make_pairs(8), **ROUND, rng=random.Random(0))

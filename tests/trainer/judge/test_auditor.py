"""The auditor: the same kind of model, of its own choices, adapter and seed."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.trainer.learn.people import build_reading_backbone, likes_short, make_pairs
from tests.trainer.tiny import encode
from trainer.judge.auditor import Auditor
from trainer.learn.reward.model import RewardModel
from trainer.sections.reward import RewardSection
from trainer.text.pairs import Pair

FAST = RewardSection(head_steps=10)


def auditor_pairs(number: int, seed: int = 0) -> list[Pair]:
    return [dataclasses.replace(pair, split="auditor") for pair in make_pairs(number, likes_short, seed=seed)]


def test_it_learns_from_its_own_split_alone_and_leaves_the_reward_model_as_it_is(tmp_path: Path) -> None:
    backbone = build_reading_backbone()
    reward, auditor = RewardModel(backbone, FAST), Auditor(backbone, FAST)
    reward.update(make_pairs(32, likes_short), [])
    rows = [encode(backbone, "Tea is a plant.")]
    before = reward.score(rows, ["Tea is a plant."]).draws
    assert not auditor.may_judge
    for seed in range(1, 5):
        auditor.update(auditor_pairs(32, seed), [])
    assert torch.equal(reward.score(rows, ["Tea is a plant."]).draws, before)
    with pytest.raises(ValueError, match="rows of the split train"):
        auditor.update(make_pairs(2, likes_short), [])
    right, total = auditor.accuracy(make_pairs(60, likes_short, consistency=1, seed=9))
    assert right / total > 0.75
    assert auditor.may_judge == (auditor.record.accuracy > 0.64)
    auditor.save(tmp_path)
    other = Auditor(build_reading_backbone(), FAST)
    other.load(tmp_path)
    assert other.version == auditor.version == 4
    assert torch.equal(other.score(rows, ["Tea is a plant."]).draws, auditor.score(rows, ["Tea is a plant."]).draws)

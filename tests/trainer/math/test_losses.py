"""Losses against numbers worked out by hand."""

import pytest
import torch

from trainer.math.losses import (
    dpo_loss,
    ipo_loss,
    rao_kupper_logprobs,
    weighted_mean,
)


def test_dpo_at_beta_one_is_the_table_of_bradley_and_terry() -> None:
    differences = torch.tensor([-3, -1, 0, 0.5, 1, 2, 3])
    expected = [3.048587, 1.313262, 0.693147, 0.474077, 0.313262, 0.126928, 0.048587]
    assert dpo_loss(differences, beta=1.0).tolist() == pytest.approx(expected, abs=1e-6)


def test_dpo_scales_the_log_ratio_by_beta() -> None:
    losses = dpo_loss(torch.tensor([0.0, 10.0, 20.0]), beta=0.1)
    assert losses.tolist() == pytest.approx([0.693147, 0.313262, 0.126928], abs=1e-6)


def test_cdpo_counts_the_label_as_wrong_one_time_in_ten() -> None:
    losses = dpo_loss(torch.tensor([0.0, 10.0, 20.0]), beta=0.1, label_smoothing=0.1)
    assert losses.tolist() == pytest.approx([0.693147, 0.413262, 0.326928], abs=1e-6)


def test_ipo_pulls_the_log_ratio_to_five_at_beta_one_tenth() -> None:
    assert ipo_loss(torch.tensor([0.0, 10.0, 20.0]), beta=0.1).tolist() == pytest.approx([25, 25, 225])


def test_rao_kupper_splits_the_chances_of_win_loss_and_tie() -> None:
    outcomes = rao_kupper_logprobs(torch.tensor(1.0), torch.tensor(3.0).log())
    chances = [outcome.exp().item() for outcome in outcomes]
    assert chances == pytest.approx([0.475367, 0.109232, 0.415401], abs=1e-6)
    assert sum(chances) == pytest.approx(1, abs=1e-6)


def test_weighted_mean_ignores_rows_of_no_weight() -> None:
    assert weighted_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 3.0, 0.0])).item() == pytest.approx(1.75)
    assert weighted_mean(torch.tensor([5.0]), torch.tensor([0.0])).item() == 0

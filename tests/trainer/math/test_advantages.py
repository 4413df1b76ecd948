"""Advantages, whitening and the KL coefficient against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from trainer.math.advantages import AdaptiveKl, estimate_advantages, whiten


def row(*values: float) -> Tensor:
    return torch.tensor([values])


def everywhere(values: Tensor) -> Tensor:
    return torch.ones_like(values, dtype=torch.bool)


def test_advantages_of_an_answer_that_ends_as_foreseen() -> None:
    rewards = values = row(0.0, 0.0, 0.0, 1.0)
    advantages, returns = estimate_advantages(rewards, values, everywhere(values), 0.9, 0.95)
    assert advantages[0].tolist() == pytest.approx([0.657922, 0.7695, 0.9, 0.0], abs=1e-6)  # .855^2 .9, .855 .9, .9, 0
    assert returns[0].tolist() == pytest.approx([0.657922, 0.7695, 0.9, 1.0], abs=1e-6)


def test_advantages_of_an_answer_that_pays_for_kl_on_its_way() -> None:
    rewards, values = row(-0.05, -0.05, 1.95), row(0.5, 0.6, 0.7)
    advantages, returns = estimate_advantages(rewards, values, everywhere(values), 1.0, 0.95)
    assert advantages[0].tolist() == pytest.approx([1.225625, 1.2375, 1.25], abs=1e-6)
    assert returns[0].tolist() == pytest.approx([1.725625, 1.8375, 1.95], abs=1e-6)


def test_padding_changes_nothing_wherever_it_stands() -> None:
    rewards, values = row(-0.05, 9.0, -0.05, 1.95, 7.0), row(0.5, 9.0, 0.6, 0.7, 7.0)
    mask = torch.tensor([[True, False, True, True, False]])
    advantages, returns = estimate_advantages(rewards, values, mask, 1.0, 0.95)
    assert advantages[0].tolist() == pytest.approx([1.225625, 0.0, 1.2375, 1.25, 0.0], abs=1e-6)
    assert returns[0].tolist() == pytest.approx([1.725625, 0.0, 1.8375, 1.95, 0.0], abs=1e-6)


def test_lambda_1_gives_the_rewards_to_come_and_lambda_0_one_step() -> None:
    rewards, values = row(1.0, 2.0, 4.0), row(10.0, 20.0, 30.0)
    to_come, _ = estimate_advantages(rewards, values, everywhere(values), 1.0, 1.0)
    assert to_come[0].tolist() == [7.0 - 10.0, 6.0 - 20.0, 4.0 - 30.0]
    one_step, _ = estimate_advantages(rewards, values, everywhere(values), 1.0, 0.0)
    assert one_step[0].tolist() == [1.0 + 20.0 - 10.0, 2.0 + 30.0 - 20.0, 4.0 - 30.0]


def test_values_are_whitened_by_their_population_variance_over_the_mask() -> None:
    values = torch.tensor([[1.0, 2.0, 50.0], [3.0, -9.0, 0.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    white = whiten(values, mask)
    spread = 1.224745  # 1 / sqrt(2 / 3)
    assert white.flatten().tolist() == pytest.approx([-spread, 0.0, 0.0, spread, 0.0, 0.0], abs=1e-5)


def test_values_that_never_vary_whiten_to_0() -> None:
    values = row(2.0, 2.0)
    assert whiten(values, everywhere(values)).tolist() == [[0.0, 0.0]]
    assert whiten(values, ~everywhere(values)).tolist() == [[0.0, 0.0]]
    assert not math.isnan(whiten(row(2.0), everywhere(row(2.0))).item())


def test_the_kl_coefficient_follows_its_target_by_at_most_a_fifth_of_the_horizon() -> None:
    control = AdaptiveKl(target=6.0, horizon=10_000.0)
    assert control.adapt(0.2, 9.0, 256) == pytest.approx(0.2010240)  # .2 (1 + .2 256 / 10,000)
    assert control.adapt(0.2, 0.0, 256) == pytest.approx(0.1989760)
    assert control.adapt(0.2, 6.6, 100) == pytest.approx(0.2002)  # .2 (1 + .1 100 / 10,000)
    assert control.adapt(0.2, 6.0, 256) == 0.2


def test_what_is_masked_may_be_no_number() -> None:
    rewards, values = torch.tensor([[0.0, math.nan, 1.0]]), torch.tensor([[0.5, math.inf, 0.25]])
    mask = torch.tensor([[True, False, True]])
    advantages, returns = estimate_advantages(rewards, values, mask, 1.0, 1.0)
    assert advantages.tolist() == [[0.5, 0.0, 0.75]] and returns.tolist() == [[1.0, 0.0, 1.0]]

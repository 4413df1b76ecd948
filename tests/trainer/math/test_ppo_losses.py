"""PPO's losses against numbers worked out by hand."""

import math

import pytest
import torch

from trainer.math.ppo_losses import (
    approximate_kl,
    explained_variance,
    importance_weights,
    k1,
    k3,
    keep_close,
    policy_losses,
    value_losses,
)


def test_the_policy_loss_takes_the_worse_of_the_whole_and_the_clipped_ratio() -> None:
    advantages, log_ratio = torch.tensor([1.0, 1.0, -1.0, -1.0, 2.0]), torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0])
    losses, is_clipped = policy_losses(advantages, log_ratio, 0.2)
    assert losses.tolist() == pytest.approx([-1.2, -0.367879, 2.718282, 0.8, -2.0], abs=1e-6)
    assert is_clipped.tolist() == [True, False, False, True, False]


def test_a_clipped_token_takes_no_gradient_and_others_take_the_advantage() -> None:
    log_ratio = torch.tensor([1.0, -1.0, 0.0], requires_grad=True)
    losses, _ = policy_losses(torch.tensor([1.0, 1.0, 3.0]), log_ratio, 0.2)
    losses.sum().backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == pytest.approx([0.0, -math.exp(-1), -3.0], abs=1e-6)


def test_a_log_ratio_past_20_stays_finite() -> None:
    losses, _ = policy_losses(torch.tensor([-1.0, -1.0]), torch.tensor([500.0, -500.0]), 0.2)
    assert losses.tolist() == pytest.approx([math.exp(20), 0.8], rel=1e-6)
    assert approximate_kl(torch.tensor(500.0)).item() == 200.0


def test_the_value_loss_takes_the_worse_of_the_whole_and_the_clipped_value() -> None:
    values, old = torch.tensor([1.0, 0.1, 1.0, -1.0]), torch.tensor([0.0, 0.0, 0.0, 0.0])
    returns = torch.tensor([2.0, 0.5, 0.0, 2.0])
    losses, is_clipped = value_losses(values, old, returns, 0.2)
    # (.2 - 2)^2 / 2; (.1 - .5)^2 / 2; 1^2 / 2 beside .2^2 / 2; (-1 - 2)^2 / 2 beside (-.2 - 2)^2 / 2
    assert losses.tolist() == pytest.approx([1.62, 0.08, 0.5, 4.5], abs=1e-6)
    assert is_clipped.tolist() == [True, False, False, False]


def test_both_estimators_of_kl() -> None:
    logprobs, reference = torch.tensor([-1.0, -1.0]), torch.tensor([-1.1, -0.9])
    assert k1(logprobs, reference).tolist() == pytest.approx([0.1, -0.1], abs=1e-6)
    assert k3(logprobs, reference).tolist() == pytest.approx([0.00483742, 0.00517092], abs=1e-7)


def test_approximate_kl_is_half_the_squared_log_ratio() -> None:
    assert approximate_kl(torch.tensor([0.2, -0.2])).tolist() == pytest.approx([0.02, 0.02])


def test_importance_weights_are_cut_at_their_cap() -> None:
    old, sampled = torch.tensor([-1.0, -1.0, -1.0, -1.0]), torch.tensor([-1.0, -1.5, -3.0, -0.5])
    assert importance_weights(old, sampled, 2.0).tolist() == pytest.approx([1.0, 1.648721, 2.0, 0.606531], abs=1e-6)


def test_answers_whose_mean_ratio_leaves_a_half_to_2_are_not_kept() -> None:
    inside, outside = math.log(2) - 0.01, math.log(2) + 0.01
    sampled = torch.zeros(6, 2)
    old = torch.tensor(
        [[0.0, 2 * inside], [2 * outside, 0.0], [-inside, -inside], [-outside, -outside], [0.0, 9.0], [0.0, 0.0]]
    )
    mask = torch.tensor([[True, True]] * 4 + [[True, False], [False, False]])
    assert keep_close(old, sampled, mask, 2.0).tolist() == [True, False, True, False, True, False]


def test_an_answer_that_is_not_finite_is_not_kept() -> None:
    old = torch.tensor([[math.nan, 0.0], [-math.inf, 0.0], [0.0, math.nan]])
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    assert keep_close(old, torch.zeros(3, 2), mask, 2.0).tolist() == [False, False, True]


def test_explained_variance_is_1_for_a_prophet_and_0_for_a_constant() -> None:
    returns = torch.tensor([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1.0
    assert explained_variance(torch.full((3,), 7.0), returns) == pytest.approx(0.0)
    assert explained_variance(torch.tensor([1.0, 2.0, 2.0]), returns) == pytest.approx(1 - 1 / 3)  # Var(0, 0, 1) = 2/9
    assert explained_variance(returns, torch.ones(3)) == 0.0

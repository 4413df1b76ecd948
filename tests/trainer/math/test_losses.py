"""Losses against numbers worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from trainer.math.losses import (
    LOSS_KINDS,
    LossSettings,
    PairLogprobs,
    answer_nll,
    apo_down_loss,
    apo_zero_loss,
    bco_loss,
    discopop_loss,
    divergence_score,
    dpo_loss,
    exo_loss,
    falling_nll,
    hinge_loss,
    ipo_loss,
    nca_loss,
    pair_losses,
    rao_kupper_logprobs,
    robust_mean,
    sppo_loss,
    tie_loss,
    unbiased_dpo_loss,
)

SIGMOID_1 = 0.731059  # sigmoid(1); -log of it is .313262, -log(1 - it) is 1.313262


def make_pairs(chosen: list[float], rejected: list[float], tokens: tuple[int, int] = (5, 2)) -> PairLogprobs:
    """Pairs of these log-ratios; every reference is -7, every answer has `tokens`."""
    reference = torch.full((len(chosen),), -7.0)
    counts = [torch.full((len(chosen),), number) for number in tokens]
    return PairLogprobs(
        torch.tensor(chosen) + reference, torch.tensor(rejected) + reference, reference, reference, counts[0], counts[1]
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


def test_cdpo_is_least_where_the_odds_are_nine_to_one() -> None:
    h = torch.tensor(math.log(9) / 0.1, requires_grad=True)
    dpo_loss(h, beta=0.1, label_smoothing=0.1).backward()
    assert h.grad is not None and h.grad.item() == pytest.approx(0, abs=1e-7)


def test_ipo_pulls_the_log_ratio_to_five_at_beta_one_tenth() -> None:
    assert ipo_loss(torch.tensor([0.0, 10.0, 20.0]), beta=0.1).tolist() == pytest.approx([25, 25, 225])


def test_rao_kupper_splits_the_chances_of_win_loss_and_tie() -> None:
    outcomes = rao_kupper_logprobs(torch.tensor(1.0), torch.tensor(3.0).log())
    chances = [outcome.exp().item() for outcome in outcomes]
    assert chances == pytest.approx([0.475367, 0.109232, 0.415401], abs=1e-6)
    assert sum(chances) == pytest.approx(1, abs=1e-6)


def test_a_tie_pulls_back_to_the_reference_from_either_side() -> None:
    h = torch.tensor([-10.0, 0.0, 10.0], requires_grad=True)
    losses = tie_loss(h, beta=0.1, nu=3)
    assert losses.tolist() == pytest.approx([0.878510, 0.693147, 0.878510], abs=1e-6)  # -log .415401, -log 8/16
    losses.sum().backward()
    assert h.grad is not None
    assert h.grad[0] < 0 < h.grad[2] and h.grad[1].item() == pytest.approx(0, abs=1e-7)


def test_hinge_is_nothing_past_its_margin() -> None:
    assert hinge_loss(torch.tensor([-10.0, 0.0, 5.0, 20.0]), beta=0.1).tolist() == pytest.approx([2, 1, 0.5, 0])


def test_the_unbiased_loss_averages_to_dpo_over_flips_of_the_label() -> None:
    h = torch.tensor([10.0, -10.0])
    right, flipped = unbiased_dpo_loss(h, beta=0.1, flip_rate=0.1).tolist()
    assert right == pytest.approx((0.9 * 0.313262 - 0.1 * 1.313262) / 0.8, abs=1e-6)
    assert 0.9 * right + 0.1 * flipped == pytest.approx(0.313262, abs=1e-6)


def test_exo_is_zero_where_the_pair_has_the_smoothed_odds() -> None:
    losses = exo_loss(torch.tensor([0.0, math.log(9) / 0.1]), beta=0.1, epsilon=0.1)
    assert losses.tolist() == pytest.approx([math.log(0.5) - 0.5 * math.log(0.09), 0], abs=1e-6)


def test_discopop_is_half_logistic_half_exponential_at_nought() -> None:
    losses = discopop_loss(torch.tensor([-10.0, 0.0, 10.0]), beta=0.1, tau=0.05)
    assert losses.tolist() == pytest.approx([1.313262, 0.5 * 0.693147 + 0.5, math.exp(-1)], abs=1e-6)


def test_losses_of_single_answers_at_ten_nats_up_and_ten_down() -> None:
    up, down = torch.tensor([10.0]), torch.tensor([-10.0])
    assert nca_loss(up, down, 0.1).item() == pytest.approx(0.313262 + 0.5 * 1.313262 + 0.5 * 0.313262, abs=1e-6)
    assert bco_loss(up, down, 0.1).item() == pytest.approx(2 * 0.313262, abs=1e-6)
    assert sppo_loss(up, down, 0.1).item() == pytest.approx(5**2 + 5**2)
    assert apo_zero_loss(up, down, 0.1).item() == pytest.approx(2 * (1 - SIGMOID_1), abs=1e-6)
    assert apo_down_loss(up, down, 0.1).item() == pytest.approx(SIGMOID_1 + 1 / (1 + math.exp(2)), abs=1e-6)


def test_length_normalised_kinds_use_log_ratios_a_token_and_a_beta_of_their_own() -> None:
    pairs = make_pairs([10.0], [-2.0], tokens=(5, 2))  # 2 a token against -1 a token: 3
    settings = LossSettings(kind="sigmoid_norm", beta=0.1, beta_norm=1.0)
    assert pair_losses(pairs, settings).tolist() == pytest.approx([0.048587], abs=1e-6)
    assert pair_losses(pairs, LossSettings(kind="ipo_norm", beta=0.1)).tolist() == pytest.approx([(3 - 5) ** 2])


def test_divergences_take_the_place_of_the_log_ratio() -> None:
    x = torch.tensor(1.0)
    assert divergence_score(x, "reverse_kl").item() == 1
    assert divergence_score(x, "forward_kl").item() == pytest.approx(1 - math.exp(-1))
    assert divergence_score(x, "js_divergence").item() == pytest.approx(math.log(2 * SIGMOID_1), abs=1e-6)
    assert divergence_score(x, "alpha_divergence", 0.5).item() == pytest.approx((math.exp(-0.5) - 1) / -0.5)
    assert divergence_score(x, "alpha_divergence", 1.0).item() == 1
    with pytest.raises(ValueError, match="unknown divergence"):
        divergence_score(x, "hellinger")


def test_a_divergence_changes_the_loss_of_a_pair() -> None:
    pairs = make_pairs([1.0], [0.0])
    settings = LossSettings(kind="sigmoid", beta=1.0, divergence="forward_kl")
    assert pair_losses(pairs, settings).item() == pytest.approx(math.log1p(math.exp(math.exp(-1) - 1)), abs=1e-6)


def test_robust_mean_lets_an_outlier_count_for_little() -> None:
    losses, weights = torch.tensor([0.0, math.log(3.0)], requires_grad=True), torch.tensor([1.0, 1.0])
    value = robust_mean(losses, weights, temperature=1.0)
    assert value.item() == pytest.approx(-math.log((1 + 1 / 3) / 2), abs=1e-6)
    value.backward()
    assert losses.grad is not None and losses.grad.tolist() == pytest.approx([0.75, 0.25])


def test_robust_mean_of_a_high_temperature_is_the_weighted_mean_and_takes_weights_of_nought() -> None:
    value = robust_mean(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([1.0, 3.0, 0.0]), temperature=1e4)
    assert value.item() == pytest.approx(1.75, abs=1e-3)


def test_the_likelihood_term_is_there_only_where_the_chosen_answer_falls() -> None:
    chosen = torch.tensor([-8.0, -6.0], requires_grad=True)
    values = falling_nll(chosen, torch.tensor([-7.0, -7.0]), torch.tensor([4, 4]))
    assert values.tolist() == [2, 0]
    values.sum().backward()
    assert chosen.grad is not None and chosen.grad.tolist() == [-0.25, 0]


def test_answers_weigh_by_their_tokens_and_their_weight() -> None:
    assert answer_nll(torch.tensor([-4.0, -2.0]), torch.tensor([1.0, 0.5]), total=10).item() == pytest.approx(0.5)


def test_aot_compares_sorted_log_ratios_and_so_no_pair_with_itself() -> None:
    reference = torch.zeros(2)
    counts = torch.ones(2)
    pairs = PairLogprobs(
        torch.tensor([3.0, 1.0]), torch.zeros(2), reference, torch.tensor([-1.0, -2.0]), counts, counts
    )
    paired = pair_losses(pairs, LossSettings(kind="aot", beta=1.0))  # 1, 3 against 1, 2
    assert paired.tolist() == pytest.approx([0.693147, 0.313262], abs=1e-6)
    unpaired = pair_losses(pairs, LossSettings(kind="aot_unpaired", beta=1.0))  # 1, 3 against 1, 2 again: -ref rejected
    assert unpaired.tolist() == pytest.approx([0.693147, 0.313262], abs=1e-6)


@pytest.mark.parametrize("kind", sorted({*LOSS_KINDS} - {"discopop"}))  # which is not monotone at the reference
def test_every_kind_pushes_the_chosen_answer_up_and_the_rejected_one_down(kind: str) -> None:
    answers = [torch.tensor([-9.0, -4.0], requires_grad=True) for _ in range(2)]
    reference, counts = torch.tensor([-9.0, -4.0]), torch.tensor([4, 2])
    pairs = PairLogprobs(answers[0], answers[1], reference, reference, counts, counts)
    losses: Tensor = pair_losses(pairs, LossSettings(kind=kind, label_smoothing=0.1))
    assert losses.shape == (2,)
    losses.sum().backward()
    assert answers[0].grad is not None and answers[1].grad is not None
    assert (answers[1].grad > 0).all()
    if kind != "apo_down":  # at the reference its two pushes on the chosen answer cancel
        assert (answers[0].grad < 0).all()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown loss"):
        pair_losses(make_pairs([0.0], [0.0]), LossSettings(kind="ppo"))

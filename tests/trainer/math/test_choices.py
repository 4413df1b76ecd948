"""The fit of named weights to choices: it finds what made them, and says how sure it is."""

import math

import pytest
import torch

from trainer.math.choices import (
    FIRST,
    RATED,
    SECOND,
    TIE,
    Choices,
    Prior,
    _Objective,
    choice_losses,
    fit_choices,
    win_probabilities,
)
from trainer.math.losses import rao_kupper_logprobs

LOG_3 = math.log(3)


def make_choices(features, kinds, *, targets=None, margins=None, weights=None) -> Choices:
    n = len(kinds)
    return Choices(
        torch.as_tensor(features, dtype=torch.float32).reshape(n, -1 if n else 2), torch.as_tensor(kinds),
        torch.as_tensor([0.0] * n if targets is None else targets),
        torch.as_tensor([0.0] * n if margins is None else margins),
        torch.as_tensor([1.0] * n if weights is None else weights),
    )  # fmt: skip


def draw_choices(num: int, weights: list[float], first_place: float, nu: float, seed: int = 0) -> Choices:
    """Choices as Rao and Kupper's people make them."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(num, len(weights), generator=generator)
    win, lose, tie = rao_kupper_logprobs(features @ torch.tensor(weights) + first_place, math.log(nu))
    drawn = torch.multinomial(torch.stack([win, lose, tie], 1).exp(), 1, generator=generator).squeeze(1)
    return make_choices(features, torch.tensor([FIRST, SECOND, TIE])[drawn])


def losses(differences, rows: Choices, first_place: float = 0.0, smoothing: float = 0.0) -> list[float]:
    return choice_losses(
        torch.tensor(differences), rows, first_place=torch.tensor(first_place), log_nu=torch.tensor(LOG_3),
        rated_intercept=torch.tensor(0.5), smoothing=smoothing,
    ).tolist()  # fmt: skip


def test_losses_are_those_of_the_table() -> None:
    rows = make_choices([0.0] * 4, [FIRST, SECOND, TIE, RATED], targets=[0.0, 0.0, 0.0, 1.0])
    expected = [-math.log(0.475367), -math.log(0.109232), -math.log(0.415401), math.log(1 + math.exp(-0.5))]
    assert losses([1.0] * 4, rows) == pytest.approx(expected, abs=1e-5)


def test_place_moves_pairs_and_not_rated_answers() -> None:
    rows = make_choices([0.0] * 4, [FIRST, SECOND, TIE, RATED], targets=[0.0, 0.0, 0.0, 1.0])
    assert losses([0.6] * 3 + [1.0], rows, first_place=0.4) == pytest.approx(losses([1.0] * 4, rows), abs=1e-6)


def test_smoothing_mixes_win_and_loss_and_a_margin_asks_for_a_lead() -> None:
    rows = make_choices([0.0] * 2, [FIRST, SECOND], margins=[1.0, 0.0])
    mixed = -0.9 * math.log(0.475367) - 0.1 * math.log(0.109232)
    assert losses([2.0, -1.0], rows, smoothing=0.1) == pytest.approx([mixed, mixed], abs=2e-6)


def test_the_fit_finds_what_made_the_choices() -> None:
    fit = fit_choices(draw_choices(8000, [1.5, -0.8, 0.0], first_place=0.3, nu=2.0), Prior(weight=10.0), smoothing=0.0)
    assert fit.weights.tolist() == pytest.approx([1.5, -0.8, 0.0], abs=0.12)
    assert fit.first_place == pytest.approx(0.3, abs=0.08)
    assert math.exp(fit.log_nu) == pytest.approx(2.0, abs=0.1)


def test_the_covariance_says_how_far_fits_lie_apart() -> None:
    fits = [fit_choices(draw_choices(200, [1.0, 0.0], 0.0, 1.5, seed), Prior(weight=10.0), smoothing=0.0) for seed in range(60)]
    spread = torch.stack([fit.weights for fit in fits]).std(0)
    said = torch.stack([fit.covariance.diagonal().sqrt() for fit in fits]).mean(0)
    assert said.tolist() == pytest.approx(spread.tolist(), rel=0.3)


def test_without_rows_the_prior_remains() -> None:
    fit = fit_choices(make_choices(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)), Prior(weight=2.0))
    assert fit.weights.tolist() == [0, 0]
    assert fit.covariance.diagonal().tolist() == pytest.approx([4, 4])
    assert math.exp(fit.log_nu) == pytest.approx(3, rel=1e-5)


def test_ties_widen_the_tie_and_pull_weights_together() -> None:
    decisive = draw_choices(200, [1.5], 0.0, 1.2)
    features = torch.cat([decisive.features, decisive.features])
    kinds = torch.cat([decisive.kinds, torch.zeros_like(decisive.kinds)])
    alone, tied = fit_choices(decisive), fit_choices(make_choices(features, kinds))
    assert tied.weights[0] < 0.7 * alone.weights[0]
    assert tied.log_nu > alone.log_nu


def test_the_slope_at_the_fit_is_nought_and_its_curvature_the_slopes_slope() -> None:
    rows = draw_choices(60, [1.0, -1.0], 0.2, 2.0)
    mixed = make_choices(
        torch.cat([rows.features, rows.features[:20]]), torch.cat([rows.kinds, torch.full((20,), RATED)]),
        targets=[0.0] * 60 + [0.3] * 20, margins=[0.4] * 80, weights=[0.5] * 40 + [2.0] * 40,
    )  # fmt: skip
    objective = _Objective(mixed.to(torch.float64), Prior(), 0.1)
    theta = torch.tensor([0.7, -0.2, 0.3, -0.4, 0.9], dtype=torch.float64)
    _, gradient, hessian = objective.measure(theta)
    for i in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[i] = 1e-5
        (up, slope_up, _), (down, slope_down, _) = objective.measure(theta + step), objective.measure(theta - step)
        assert (up - down) / 2e-5 == pytest.approx(gradient[i].item(), rel=1e-6, abs=1e-6)
        assert ((slope_up - slope_down) / 2e-5).tolist() == pytest.approx(hessian[i].tolist(), rel=1e-5, abs=1e-5)


def test_without_ties_the_tie_is_narrow_but_not_nought() -> None:
    fit = fit_choices(draw_choices(2000, [1.0], 0.0, 1.001))
    assert 0 < fit.log_nu < 0.05


def test_rows_that_weigh_nothing_say_nothing_and_double_weight_is_twice_the_row() -> None:
    rows = draw_choices(40, [1.0], 0.0, 2.0)
    mute = make_choices(torch.cat([rows.features, -rows.features]), torch.cat([rows.kinds, rows.kinds]), weights=[1.0] * 40 + [0.0] * 40)
    assert fit_choices(mute).weights.item() == pytest.approx(fit_choices(rows).weights.item(), abs=1e-5)
    heavy = make_choices(rows.features, rows.kinds, weights=[2.0] * 40)
    twice = make_choices(rows.features.repeat(2, 1), rows.kinds.repeat(2))
    assert fit_choices(heavy).weights.item() == pytest.approx(fit_choices(twice).weights.item(), abs=1e-5)


def test_ratings_move_the_same_weights() -> None:
    features = torch.linspace(-2, 2, 200)
    fit = fit_choices(make_choices(features, [RATED] * 200, targets=torch.sigmoid(1.2 * features - 0.4)))
    assert fit.weights.item() == pytest.approx(1.2, abs=0.08)
    assert fit.rated_intercept == pytest.approx(0.4, abs=0.08)


def test_a_win_is_as_likely_as_its_share_of_the_decisive() -> None:
    chance = win_probabilities(torch.tensor([1.0, 0.0, -1.0]), LOG_3)
    assert chance.tolist() == pytest.approx([0.475367 / 0.584599, 0.5, 0.109232 / 0.584599], abs=1e-5)

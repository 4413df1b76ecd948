"""Intervals against numbers worked out by hand or printed in tables."""

import math
import random

import pytest

from trainer.math.intervals import (
    Estimate,
    bootstrap_interval,
    estimate_mean,
    estimate_over_draws,
    log_evidence,
    spend_alpha,
    student_quantile,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("share", "freedom", "expected"),  # from the tables
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 5, 2.5706), (0.95, 10, 1.8125), (0.995, 30, 2.7500)],
)
def test_students_quantiles_are_those_of_the_tables(share: float, freedom: float, expected: float) -> None:
    assert student_quantile(share, freedom) == pytest.approx(expected, rel=2e-3)
    assert student_quantile(1 - share, freedom) == pytest.approx(-expected, rel=2e-3)


def test_without_end_of_freedom_students_quantile_is_the_normal_one() -> None:
    assert student_quantile(0.975, math.inf) == pytest.approx(1.959964, abs=1e-6)
    with pytest.raises(ValueError, match="share"):
        student_quantile(1.0, 5)


def test_wilson_gives_the_share_and_its_score_interval() -> None:
    interval = wilson_interval(8, 10)
    assert (interval.value, interval.n) == (0.8, 10)
    assert (interval.low, interval.high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson_interval(0, 5).low == 0
    with pytest.raises(ValueError, match="no share"):
        wilson_interval(1, 0)


def test_values_on_their_own_have_the_ordinary_standard_error() -> None:
    estimate = estimate_mean([1.0, 2.0, 3.0])
    assert (estimate.mean, estimate.freedom, estimate.n) == (2.0, 2, 3)
    assert estimate.std_error == pytest.approx(math.sqrt(1 / 3))


def test_answers_to_one_prompt_count_as_one_cluster() -> None:
    twice = estimate_mean([1.0, 1.0, 2.0, 2.0, 3.0, 3.0], ["a", "a", "b", "b", "c", "c"])
    assert twice.std_error == pytest.approx(math.sqrt(1 / 3))  # nothing was gained by asking twice
    assert twice.n == 3
    assert estimate_mean([1.0, 2.0], ["a", "a"]).std_error == math.inf


def test_a_difference_is_unsure_over_draws_and_prompts() -> None:
    # draw 1 sees 1 and 3, draw 2 sees 3 and 5: means 2 and 4, each with variance 2/2 = 1; the draws' variance is 2.
    estimate = estimate_over_draws([[1.0, 3.0], [3.0, 5.0]])
    assert estimate.mean == 3.0
    assert estimate.std_error == pytest.approx(math.sqrt(1 + 2))
    assert estimate.freedom == pytest.approx(9 / (1 / 1 + 4 / 1))


def test_draws_that_agree_leave_only_what_the_prompts_vary() -> None:
    alone, agreed = estimate_over_draws([[1.0], [3.0], [2.0]]), estimate_over_draws([[1.0] * 4, [3.0] * 4, [2.0] * 4])
    assert agreed.std_error == pytest.approx(alone.std_error)
    assert estimate_over_draws([[0.5, 0.5]] * 3) == Estimate(0.5, 0.0, 2, 3)


def test_bounds_are_one_sided_and_an_interval_two_sided() -> None:
    estimate = Estimate(1.0, 0.5, math.inf, 100)
    assert estimate.lower(0.05) == pytest.approx(1 - 0.5 * 1.644854, abs=1e-6)
    assert estimate.upper(0.025) == pytest.approx(1 + 0.5 * 1.959964, abs=1e-6)
    assert estimate.interval().low == pytest.approx(1 - 0.5 * 1.959964, abs=1e-6)
    assert Estimate(1.0, 0.0, 3, 4).lower(0.001) == 1.0


def test_bootstrap_draws_whole_clusters_and_repeats_by_its_seed() -> None:
    rng = random.Random(1)
    means = [rng.gauss(0, 1) for _ in range(200)]
    values, clusters = [m for m in means for _ in range(5)], [i for i in range(200) for _ in range(5)]
    interval = bootstrap_interval(values, clusters, seed=3)
    assert interval == bootstrap_interval(values, clusters, seed=3)
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * estimate_mean(values, clusters).std_error, rel=0.1)


def test_a_mean_that_is_really_nought_is_seldom_called_above_it() -> None:
    rng = random.Random(7)
    fooled = sum(
        estimate_mean([rng.gauss(0, 1) for _ in range(12)]).lower(0.05) > 0
        for _ in range(2000)
    )  # fmt: skip
    assert fooled / 2000 == pytest.approx(0.05, abs=0.015)


def test_all_looks_together_spend_alpha() -> None:
    assert spend_alpha(0.05, 1) == pytest.approx(0.0303964, abs=1e-6)
    assert sum(spend_alpha(0.05, n) for n in range(1, 20_000)) == pytest.approx(0.05, abs=1e-5)
    with pytest.raises(ValueError, match="from 1"):
        spend_alpha(0.05, 0)


def test_evidence_is_the_mixture_e_value() -> None:
    assert math.exp(log_evidence(2, 2)) == pytest.approx(4 / 3)  # 2^2 B(3, 1)
    assert math.exp(log_evidence(1, 2)) == pytest.approx(2 / 3)  # 2^2 B(2, 2)

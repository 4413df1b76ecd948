"""Shares with intervals, alone and in clusters, against hand-computed numbers."""

import pytest

from prefloop.demo.intervals import measure_share, score_pair, t_quantile_975, wilson_interval


def test_wilson_interval_matches_hand_computed_numbers() -> None:
    # centre .7096037 / 1.0192073, half width 1.9230279 * sqrt(.0010740091)
    assert wilson_interval(0.7, 200) == pytest.approx((0.633209, 0.759253), abs=1e-6)
    assert wilson_interval(0.5, 20) == pytest.approx((0.299298, 0.700702), abs=1e-6)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(1, 10)[1] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("share", "n"), [(0.0, 0), (1.5, 2), (-0.1, 2)])
def test_a_share_of_nothing_is_refused(share: float, n: int) -> None:
    with pytest.raises(ValueError):
        wilson_interval(share, n)


def test_a_share_of_no_trials_is_refused() -> None:
    with pytest.raises(ValueError):
        measure_share([], [])


@pytest.mark.parametrize(("freedom", "quantile"), [(5, 2.5706), (10, 2.2281), (30, 2.0423), (39, 2.0227)])
def test_student_s_quantile_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert t_quantile_975(freedom) == pytest.approx(quantile, abs=0.004)


def test_ways_of_asking_for_one_fact_count_once_where_they_always_agree() -> None:
    # 20 facts asked three ways each, half of the facts won whole: variance 20/19 * 20 * 1.5^2 / 60^2 = .0131579,
    # so 60 trials are worth .25 / .0131579 = 19.
    scores = [1.0, 1.0, 1.0] * 10 + [0.0, 0.0, 0.0] * 10
    share = measure_share(scores, [str(number // 3) for number in range(60)])
    assert (share.value, share.n, share.clusters) == (0.5, 60, 20)
    assert (share.low, share.high) == pytest.approx(wilson_interval(0.5, 19, t_quantile_975(19)), abs=1e-9)


def test_trials_that_are_alone_are_worth_themselves_nearly() -> None:
    # 100 clusters of one: variance 100/99 * .25 / 100, so they are worth 99.
    share = measure_share([1.0, 0.0] * 50, [str(number) for number in range(100)])
    assert (share.low, share.high) == pytest.approx(wilson_interval(0.5, 99, t_quantile_975(99)), abs=1e-9)


def test_ties_narrow_no_interval_below_that_of_as_many_trials() -> None:
    share = measure_share([0.5] * 40, [str(number) for number in range(40)])
    assert (share.low, share.high) == pytest.approx(wilson_interval(0.5, 40, t_quantile_975(39)), abs=1e-9)


def test_where_all_win_every_fact_is_one_trial() -> None:
    share = measure_share([1.0] * 30, [str(number // 3) for number in range(30)])
    assert share.low == pytest.approx(wilson_interval(1.0, 10, t_quantile_975(9))[0], abs=1e-9) and share.high == 1.0


def test_a_win_is_one_and_a_tie_is_half() -> None:
    assert [score_pair(1.0, 0.2), score_pair(0.2, 0.2), score_pair(-1.0, 0.2)] == [1.0, 0.5, 0.0]

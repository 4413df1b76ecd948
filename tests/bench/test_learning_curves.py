"""From win rates to choices: hand-computed crossings, ratios of arms, and what is never reached."""

import math

import pytest

from bench.learning.curves import (
    Curve,
    Wins,
    compare_choices,
    compare_win_rates,
    count_choices,
    find_choices,
    find_quantile,
    find_target,
    measure_win_rate,
)


def make_curve(points: dict[int, float], num_facts: int = 4) -> Curve:
    return Curve({n: {f"fact-{i}": (rate, 12) for i in range(num_facts)} for n, rate in points.items()})


def make_ceilings(*targets: float) -> list[Wins]:
    """Ceilings of which each target is GAIN_SHARE of the gain."""
    return [{f"fact-{i}": (0.5 + (target - 0.5) / 0.8, 12) for i in range(4)} for target in targets]


def test_what_counts_is_when_a_win_rate_is_first_reached() -> None:
    falls = {50: 0.55, 100: 0.64, 200: 0.75, 400: 0.4, 800: 0.3}
    assert find_choices(falls, 0.75) == pytest.approx(200.0, abs=1e-9)
    assert find_choices(falls, 0.695) == pytest.approx(100 * 2**0.5, abs=1e-9)


def test_a_crossing_between_two_points_is_read_off_in_the_logarithm_of_choices() -> None:
    assert find_choices({100: 0.6, 400: 0.8}, 0.7) == pytest.approx(200.0, abs=1e-9)
    assert find_choices({100: 0.6, 400: 0.8}, 0.8) == pytest.approx(400.0, abs=1e-9)


def test_below_the_first_point_a_policy_rises_evenly_from_chance() -> None:
    assert find_choices({100: 0.7, 200: 0.8}, 0.6) == pytest.approx(50.0, abs=1e-9)


def test_a_win_rate_that_no_point_reaches_takes_infinitely_many_choices() -> None:
    assert math.isinf(find_choices({100: 0.6, 400: 0.7}, 0.71))


def test_a_first_point_worse_than_chance_does_not_make_later_ones_look_dearer() -> None:
    assert find_choices({100: 0.3, 400: 0.7}, 0.6) == pytest.approx(200.0, abs=1e-9)


def test_the_target_is_four_fifths_of_the_way_from_chance_to_the_ceiling() -> None:
    assert find_target(0.9) == pytest.approx(0.82, abs=1e-12)


def test_seeds_that_agree_leave_no_interval() -> None:
    curves = [make_curve({100: 0.6, 400: 0.8})] * 3
    counted = count_choices(curves, make_ceilings(0.7, 0.7, 0.7))
    assert [counted.value, counted.low, counted.high] == pytest.approx([200.0] * 3, abs=1e-6)


def test_the_interval_of_choices_spans_seeds_that_differ() -> None:
    curves = [make_curve({100: 0.6, 400: 0.8}), make_curve({100: 0.7, 400: 0.9}), make_curve({100: 0.5, 400: 0.7})]
    counted = count_choices(curves, make_ceilings(0.7, 0.7, 0.7))
    assert counted.low < counted.value < counted.high


def test_an_arm_that_needs_a_quarter_of_the_choices_has_the_ratio_a_quarter() -> None:
    ours, theirs = [make_curve({50: 0.7, 100: 0.8})] * 2, [make_curve({200: 0.7, 400: 0.8})] * 2
    assert compare_choices(ours, theirs, make_ceilings(0.8, 0.8)).value == pytest.approx(0.25, abs=1e-9)


def test_where_the_other_arm_never_gets_there_its_largest_number_stands_for_it() -> None:
    ours, theirs = [make_curve({50: 0.7, 100: 0.8})], [make_curve({200: 0.6, 400: 0.7})]
    assert compare_choices(ours, theirs, make_ceilings(0.8)).value == pytest.approx(0.25, abs=1e-9)
    assert math.isinf(compare_choices(theirs, ours, make_ceilings(0.8)).value)


def test_a_win_rate_weighs_facts_by_their_questions() -> None:
    rate = measure_win_rate([{"a": (1.0, 3), "b": (0.0, 1)}])
    assert rate.value == pytest.approx(0.75, abs=1e-12)
    assert rate.low < 0.75 < rate.high


def test_quantiles_take_infinite_values_for_the_largest() -> None:
    assert find_quantile([1.0, math.inf, 2.0, 3.0], 0.5) == 3.0
    assert math.isinf(find_quantile([1.0, math.inf, 2.0, 3.0], 0.975))


def test_the_spread_of_a_mean_of_three_seeds_is_theirs_over_the_root_of_three() -> None:
    """Drawing three of three would make it a third smaller in variance."""
    rates = (0.4, 0.6, 0.8)
    found = measure_win_rate([{"a": (rate, 1)} for rate in rates])
    assert (found.low, found.high) == pytest.approx(
        (0.4, 0.8), abs=1e-12
    )  # both of two draws are the same seed: 1 in 9
    assert found.value == pytest.approx(0.6, abs=1e-12)


def test_the_ceiling_is_drawn_with_the_arm() -> None:
    """Where a seed's arm is as much better as its ceiling, there is nothing to be unsure of."""
    curves = [make_curve({100: 0.6, 400: 0.8}), make_curve({100: 0.7, 400: 0.9})]
    counted = count_choices(curves, make_ceilings(0.7, 0.8))
    assert [counted.value, counted.low, counted.high] == pytest.approx([200.0] * 3, abs=1e-6)


def test_a_difference_takes_the_same_seeds_and_facts_of_both() -> None:
    ours = [{"a": (0.9, 4), "b": (0.5, 4)}, {"a": (0.7, 4), "b": (0.3, 4)}]
    theirs = [{fact: (rate - 0.1, n) for fact, (rate, n) in wins.items()} for wins in ours]
    found = compare_win_rates(ours, theirs)
    assert [found.value, found.low, found.high] == pytest.approx([0.1] * 3, abs=1e-12)

"""Weights of choices, by numbers worked out by hand."""

import pytest

from trainer.math.weights import WeightedRow, cap_shares, estimate_reliability, weigh_rows


def row(user: str = "", app: str = "", age_s: float = 0.0, weight: float = 1.0) -> WeightedRow:
    return WeightedRow(user=user, app=app, age_s=age_s, weight=weight)


def test_reliability_is_one_for_the_unknown_and_shrunk_for_the_little_known() -> None:
    assert estimate_reliability(0, 0) == 1
    assert estimate_reliability(10, 10) == pytest.approx(1.5)  # c = 17.5 / 20 = .875
    assert estimate_reliability(5, 10) == pytest.approx(0.5)  # c = 12.5 / 20 = .625
    assert estimate_reliability(45, 90) == pytest.approx(0.1)  # c = .525: a coin, nearly


def test_someone_who_contradicts_everything_still_counts_a_little() -> None:
    assert estimate_reliability(0, 1000) == 0.1
    with pytest.raises(ValueError, match="3 of 2 agreed"):
        estimate_reliability(3, 2)


def test_a_group_above_its_share_is_cut_to_it() -> None:
    # 6 of 10 is cut to x with x / (x + 4) = .4: 8/3, spread over its six rows
    weights = cap_shares([1.0] * 10, ["a"] * 6 + ["b", "c", "d", "e"], 0.4)
    assert weights == pytest.approx([8 / 18] * 6 + [1.0] * 4)
    assert sum(weights[:6]) / sum(weights) == pytest.approx(0.4)


def test_two_groups_above_their_share_are_both_cut_to_it() -> None:
    weights = cap_shares([6.0, 3.0, 1.0, 1.0], ["a", "b", "c", "d"], 0.3)
    # both to x with x = .3 (2x + 2): 1.5
    assert weights == pytest.approx([1.5, 1.5, 1, 1])


def test_with_too_few_groups_for_the_cap_all_weigh_the_same() -> None:
    assert cap_shares([3.0, 1.0], ["a", "b"], 0.1) == pytest.approx([1, 1])
    assert cap_shares([3.0], ["a"], 0.1) == [3]
    assert cap_shares([], [], 0.1) == []


def test_rows_of_nobody_in_particular_are_not_capped() -> None:
    assert cap_shares([5.0, 1.0, 1.0], ["", "a", "b"], 0.2) == pytest.approx([5, 1, 1])


def test_weights_are_reliability_times_recency_with_mean_one() -> None:
    rows = [row("a", age_s=0), row("b", age_s=100), row("c", age_s=200, weight=2.0)]
    weights = weigh_rows(rows, reliability={"a": 1.5, "b": 0.5}, half_life_s=100, max_user_share=1.0, max_app_share=1.0)
    # 1.5, .5 / 2, 2 / 4: sum 2.25, times 3
    assert weights == pytest.approx([2.0, 1 / 3, 2 / 3])


def test_without_a_half_life_age_does_not_count() -> None:
    assert weigh_rows([row("a", age_s=9e9), row("b")], reliability={}, half_life_s=0) == [1, 1]


def test_no_person_and_no_app_outweighs_the_others() -> None:
    rows = [row("loud", "x")] * 20 + [row(f"u{i}", "x") for i in range(5)] + [row(f"v{i}", "y") for i in range(5)]
    weights = weigh_rows(rows, reliability={}, half_life_s=0, max_user_share=0.2, max_app_share=0.5)
    total = sum(weights)
    assert total == pytest.approx(30)
    # the loud one is cut to 2.5 of 12.5, then app x (7.5) to y's 5: 2.5 * 2/3 of 10
    assert sum(weights[:20]) / total == pytest.approx(1 / 6)
    assert sum(weights[:25]) / total == pytest.approx(0.5)


def test_a_lone_row_beside_one_large_app_counts_four_of_it_and_not_half_of_all() -> None:
    rows = [row(f"u{i}", "main") for i in range(999)] + [row("tester", "test")]
    weights = weigh_rows(rows, reliability={}, half_life_s=0)
    # at least 1000 / 4 is left: main is cut to 249 of 250, and all of it is put up by 4
    assert weights[-1] == pytest.approx(4)
    assert weights[0] == pytest.approx(4 * 249 / 999)


def test_a_lone_row_beside_one_loud_person_counts_four_of_it() -> None:
    weights = weigh_rows([row("a")] * 63 + [row("b")], reliability={}, half_life_s=0)
    assert weights[-1] == pytest.approx(4)  # 16 are left: 15 of a and 1 of b
    assert weights[0] == pytest.approx(4 * 15 / 63)


def test_both_caps_together_put_no_row_up_by_more_than_four() -> None:
    rows = [row("loud", "x")] * 90 + [row(f"u{i}", "x") for i in range(5)] + [row(f"v{i}", "y") for i in range(5)]
    weights = weigh_rows(rows, reliability={}, half_life_s=0, max_user_share=0.2, max_app_share=0.5)
    # the loud one is cut to 15 of 25, and x (20 of 25) cannot be cut beside it
    assert weights == pytest.approx([4 * 15 / 90] * 90 + [4.0] * 10)


def test_what_is_left_is_shared_by_the_largest_groups() -> None:
    # the share alone cuts all to 1; 8 are to be left: x + x + 2 + 1 = 8
    assert cap_shares([9.0, 4.0, 2.0, 1.0], ["a", "b", "c", "d"], 0.1, least_total=8) == pytest.approx([2.5, 2.5, 2, 1])
    assert cap_shares([9.0, 1.0, 5.0], ["a", "b", ""], 0.1, least_total=9) == pytest.approx([3, 1, 5])


def test_rows_that_are_all_very_old_count_by_what_lies_between_them() -> None:
    rows = [row("a", age_s=1e9), row("b", age_s=1e9 + 100)]
    weights = weigh_rows(rows, reliability={}, half_life_s=100, max_user_share=1.0)
    assert weights == pytest.approx([4 / 3, 2 / 3])


def test_rows_that_all_weigh_nothing_stay_so() -> None:
    assert weigh_rows([row(weight=0.0), row(weight=0.0)], reliability={}, half_life_s=0) == [0, 0]

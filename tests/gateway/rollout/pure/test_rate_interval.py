"""The interval of a rate: hand-computed ends, and how often it misses when one always looks."""

import math
import random

import pytest

from gateway.rollout.pure.rate_interval import bound_rate


def test_without_users_nothing_is_known() -> None:
    assert bound_rate(0, 0, 0.1) == (0.0, 1.0)


def test_one_clean_user_bounds_by_hand() -> None:
    # E(p) = B(.5, 1.5) / B(.5, .5) / (1 - p) = .5 / (1 - p) is 10 at p = .95
    assert bound_rate(1, 0, 0.1) == (0.0, pytest.approx(0.95, abs=1e-9))
    assert bound_rate(1, 1, 0.1) == (pytest.approx(0.05, abs=1e-9), 1.0)


def test_both_ends_are_where_the_test_begins_to_reject() -> None:
    low, high = bound_rate(50, 5, 0.1)
    assert low < 0.1 < high
    mixed = math.lgamma(5.5) + math.lgamma(45.5) - math.lgamma(51) - math.log(math.pi)  # B(.5, .5) = pi
    for end in (low, high):
        assert mixed - 5 * math.log(end) - 45 * math.log1p(-end) == pytest.approx(math.log(10), abs=1e-6)


def test_always_looking_misses_the_rate_at_most_one_time_in_ten() -> None:
    rng, num_missed = random.Random(3), 0
    for _ in range(200):
        num_events = 0
        for num_users in range(1, 201):
            num_events += rng.random() < 0.2
            low, high = bound_rate(num_users, num_events, 0.1)
            if not low <= 0.2 <= high:
                num_missed += 1
                break
    assert 1 <= num_missed <= 33  # 20 expected at most, and three standard deviations

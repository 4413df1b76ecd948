"""Shares and their propensities, by hand and in a seeded simulation."""

from __future__ import annotations

from collections import Counter, defaultdict
from random import Random

import pytest
from pydantic import ValidationError

from gateway.sections.asking import AskingSection
from gateway.serving.pairs.asking import Ask, Side, add_sides
from gateway.serving.pairs.shares import draw_share, fall_back


def test_what_random_leaves_is_halved_unless_it_is_set() -> None:
    assert AskingSection().shares == pytest.approx({"random": 0.1, "informative": 0.45, "telling": 0.45})
    assert AskingSection(random=0.2, telling=0.1).shares == pytest.approx(
        {"random": 0.2, "informative": 0.7, "telling": 0.1}
    )
    assert AskingSection(random=1).shares == {"random": 1, "informative": 0, "telling": 0}
    assert AskingSection(random=0.5, informative=0.5, telling=0).shares["telling"] == 0


@pytest.mark.parametrize(
    "shares", [{"random": 0.5, "informative": 0.6}, {"random": 0.5, "informative": 0.1, "telling": 0.1}]
)
def test_shares_that_are_not_all_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="add up to"):
        AskingSection(**shares)


def test_the_propensity_is_the_chance_of_asking_times_that_of_the_share() -> None:
    settings, rng = AskingSection(random=0.2, informative=0.5, telling=0.3), Random(3)
    drawn = Counter(draw_share(Ask("policy", 0.1), settings, rng) for _ in range(20_000))
    by_share = {ask.share: (ask.propensity, num) for ask, num in drawn.items()}
    assert {share: propensity for share, (propensity, _) in by_share.items()} == pytest.approx(
        {"random": 0.02, "informative": 0.05, "telling": 0.03}
    )
    for share, (_, num) in by_share.items():  # 4 standard deviations of at most 71
        assert abs(num - 20_000 * settings.shares[share]) < 285


def test_a_share_that_is_not_wanted_is_never_drawn() -> None:
    settings = AskingSection(random=0.3, informative=0.7)
    asks = {draw_share(Ask("policy", 1.0), settings, Random(seed)).share for seed in range(500)}
    assert asks == {"random", "informative"}


def test_one_that_falls_back_has_the_propensity_of_having_been_asked_at_all() -> None:
    settings = AskingSection(random=0.2, informative=0.5, telling=0.3)
    assert fall_back(Ask("policy", 0.05, "informative"), settings) == Ask("policy", pytest.approx(0.1), "random")


@pytest.mark.parametrize("is_away", [False, True])
def test_weights_by_propensity_add_up_to_all_requests(is_away: bool) -> None:
    """Of random comparisons, and of each other share while the scorer is there (Horvitz and Thompson 1952)."""
    settings, rng, num = AskingSection(random=0.25, informative=0.5, telling=0.25), Random(11), 40_000
    weights: dict[str, float] = defaultdict(float)
    for _ in range(num):
        if rng.random() >= 0.4:
            continue
        ask = draw_share(Ask("policy", 0.4), settings, rng)
        if ask.share != "random" and is_away:
            ask = fall_back(ask, settings)
        elif is_away:
            continue  # the gateway does not know yet that it is away: such a row stands beside, not instead of the others
        weights[ask.share] += 1 / ask.propensity
    # standard deviation of the estimated total: sqrt(num (1 - p) / p), p = .1 at the least: 600
    expected = {"random": 0.75 * num} if is_away else dict.fromkeys(settings.shares, num)
    assert weights == pytest.approx(expected, abs=2400)


def test_further_sides_are_like_the_first_with_seeds_of_their_own() -> None:
    two = Side("canary", "c-1", 5), Side("canary", "c-1", 2**29)
    sides = add_sides(two, 6, Random(1))
    assert sides[:2] == two and len({side.seed for side in sides}) == 6
    assert {(side.arm, side.checkpoint) for side in sides} == {("canary", "c-1")}
    assert max(side.seed for side in sides) < 2**31

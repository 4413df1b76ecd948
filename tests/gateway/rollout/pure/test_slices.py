"""Evidence by slice: worked out by hand, and how often it blocks what it must and must not."""

import math

import numpy as np
import pytest

from gateway.rollout.pure.evidence import BETS, log_inferiority
from gateway.rollout.pure.positions import tally_positions
from gateway.rollout.pure.slices import SliceTally, judge_slices, tally_slices
from gateway.rollout.pure.users import Duel, Tag


def duel(user: str, at: float, outcome: int, *tags: Tag, **flags: bool) -> Duel:
    return Duel(user, at, at + 1, outcome, tags=tags, **flags)


DE, EN, CODE = ("language", "de"), ("language", "en"), ("task", "code")


def test_a_user_counts_once_in_each_slice_with_the_duels_there_alone() -> None:
    duels = [
        duel("a", 0, 1, DE, CODE), duel("a", 1, -1, DE), duel("a", 2, 1, EN),
        duel("b", 5, -1, DE), duel("c", 6, 1),
    ]  # fmt: skip
    found = tally_slices(duels, cap=2, window_s=100, now=1000, max_slices=9)
    assert found == (
        SliceTally("language", "de", 0, (0, 1, 1, 0, 0)),  # a: 1 - 1, b: -1
        SliceTally("language", "en", 0, (0, 0, 0, 1, 0)),
        SliceTally("task", "code", 0, (0, 0, 0, 1, 0)),
    )


def test_users_enter_a_slice_in_the_order_of_their_first_duel_there() -> None:
    duels = [duel("a", 0, 1, DE), duel("b", 1, -1, DE), duel("b", 2, -1, DE)]
    found = tally_slices(duels, cap=2, window_s=100, now=50, max_slices=9)  # b is complete, a before it is not
    assert found == (SliceTally("language", "de", 2, (0, 0, 0, 0, 0)),)


def test_the_slices_with_the_most_users_are_judged() -> None:
    duels = [duel("a", 0, 1, CODE, EN), duel("a", 0, 1, EN), duel("b", 1, 1, DE), duel("c", 1, 1, DE)]
    found = tally_slices(duels, cap=1, window_s=100, now=1000, max_slices=2)
    assert [(one.name, one.value) for one in found] == [DE, EN]  # then by name
    assert tally_slices(duels, cap=1, window_s=100, now=1000, max_slices=0) == ()


def test_a_slice_loses_from_the_threshold_on() -> None:
    losses = next(n for n in range(1, 100) if math.log(sum((1 + BETS) ** n) / 8) >= math.log(20))
    tallies = [SliceTally("language", "de", 0, (num, 0, 0)) for num in (losses - 1, losses)]
    before, after = judge_slices(tallies, cap=1, alpha=0.05, threshold=20)
    assert (before.status, after.status, after.label) == ("not enough data", "fail", "language=de")
    assert after.log_e_inferior == pytest.approx(math.log(sum((1 + BETS) ** losses) / 8), rel=1e-12)
    assert (after.users, after.net) == (losses, -1.0) and after.low < after.high < 0


def test_a_slice_passes_when_its_whole_interval_is_above_nothing() -> None:
    few, many = judge_slices(
        [SliceTally("task", "code", 3, (0, 0, num)) for num in (4, 40)], cap=1, alpha=0.05, threshold=20
    )
    assert (few.status, many.status, many.waiting) == ("not enough data", "pass", 3) and few.low < 0 < many.low


def share_ever_lost(net: float, num_users: int, num_slices: int, rng: np.random.Generator) -> float:
    """The share of rollouts in which any of their equal slices is ever said to lose, looking after every user."""
    wins = rng.random((400, num_slices, num_users)) < (1 + net) / 2
    won = wins.cumsum(axis=-1)
    counts = np.stack([np.arange(1, num_users + 1) - won, 0 * won, won], axis=-1).astype(float)
    return float((log_inferiority(counts, 1) >= math.log(20)).any(axis=(1, 2)).mean())


def test_how_often_slices_block_by_chance_and_when_they_must() -> None:
    rng = np.random.default_rng(5)
    assert share_ever_lost(0.0, 200, 1, rng) <= 0.05 + 0.022  # Ville's bound and two standard errors
    assert share_ever_lost(0.2, 100, 12, rng) <= 0.05  # twelve slices of a canary that is to be promoted
    assert share_ever_lost(-0.4, 100, 1, rng) >= 0.9  # a slice that really loses, 30 to 70


def test_positions_count_what_people_decided_by_the_canarys_place() -> None:
    duels = [
        duel("a", 0, 1, canary_first=True), duel("a", 1, 1, canary_first=True), duel("a", 2, -1, canary_first=True),
        duel("b", 0, -1), duel("b", 1, 0), duel("b", 2, 0, both_bad=True), duel("c", 0, -1, failed=True),
        Duel("c", 1, None, 0, canary_first=True),
    ]  # fmt: skip
    found = tally_positions(duels)
    first, second = found.first, found.second
    assert (first.votes, first.wins, first.losses, first.ties, first.both_bad) == (3, 2, 1, 0, 0)
    assert (second.votes, second.wins, second.losses, second.ties, second.both_bad) == (3, 0, 1, 1, 1)
    assert found.first_share == 3 / 4  # the canary twice, stable once; the canary first and lost once
    assert tally_positions([]).first_share is None


def test_a_slice_that_may_lose_is_shown_as_accepted_and_no_other_is() -> None:
    tallies = [SliceTally("language", value, 0, (90, 0, 0)) for value in ("de", "fr")]
    tallies.append(SliceTally("language", "en", 0, (0, 0, 90)))
    found = judge_slices(tallies, cap=1, alpha=0.05, threshold=20, accepted=("language=de", "language=en"))
    assert [one.status for one in found] == ["accepted", "fail", "pass"] and found[0].net == -1.0

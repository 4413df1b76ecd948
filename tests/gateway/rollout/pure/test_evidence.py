"""The preference evidence against numbers worked out by hand, exact recursions and simulation."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.rollout.pure.evidence import (
    BETS,
    enter_users,
    invert_bets,
    log_inferiority,
    log_superiority,
    weigh_voters,
)
from gateway.rollout.pure.users import Duel, Voter, sum_up


def counts(**score: int) -> np.ndarray:
    return np.array([score.get("lost", 0), score.get("tied", 0), score.get("won", 0)], dtype=float)


def test_one_win_gives_one_plus_the_mean_bet() -> None:
    # (1/8) sum (1 + l_j) = 1 + 1.81 / 8
    assert math.exp(log_superiority(counts(won=1), 1)) == pytest.approx(1.22625, rel=1e-12)
    assert math.exp(log_inferiority(counts(won=1), 1)) == pytest.approx(1 - 1.81 / 8, rel=1e-12)


def test_ties_say_nothing() -> None:
    assert log_superiority(counts(tied=500), 1) == pytest.approx(0.0, abs=1e-12)


def test_two_of_three_duels_won_by_two_users_of_cap_three() -> None:
    own = np.array([0, 0, 0, 0, 2, 0, 0], dtype=float)  # two users with (2 - 1) / 3
    expected = sum((1 + bet / 3) ** 2 for bet in BETS) / 8
    assert math.exp(log_superiority(own, 3)) == pytest.approx(expected, rel=1e-12)


def test_a_margin_makes_winning_harder() -> None:
    assert log_superiority(counts(won=10), 1, 0.2) < log_superiority(counts(won=10), 1)


def test_the_interval_agrees_with_the_gate_at_zero() -> None:
    for won in range(0, 60):
        mix = counts(won=won, lost=20)
        low, high = invert_bets(mix[None, :], 1, 0.05)
        assert (low[0] > 0) == (log_superiority(mix, 1) >= math.log(20))
        assert (high[0] < 0) == (log_inferiority(mix, 1) >= math.log(20))


def voter(user: str, asked: float, complete: float, score: int) -> Voter:
    return Voter(user, asked, complete, score, votes=1, wins=0, losses=0, both_bad=0, last_chosen_at=asked, first=None)


def test_a_user_who_is_complete_early_waits_for_all_before() -> None:
    voters = [voter("fast", 1, 3, 2), voter("slow", 0, 100, 1)]
    entered, waiting = enter_users(voters, now=50)
    assert entered == [] and waiting == 2
    entered, waiting = enter_users(voters, now=100)
    assert [(user.user, user.score, user.at) for user in entered] == [("slow", 1, 100.0), ("fast", 2, 100.0)]
    assert waiting == 0


def list_voters(duels: list[Duel]) -> list[Voter]:
    users = dict.fromkeys(duel.user for duel in duels)
    return [sum_up([duel for duel in duels if duel.user == user], cap=3, window_s=30) for user in users]


duel_lists = st.lists(
    st.builds(
        lambda user, asked, wait, outcome: Duel(f"u{user}", asked, None if wait is None else asked + wait, outcome),
        st.integers(0, 6), st.floats(0, 100), st.none() | st.floats(0.1, 40), st.sampled_from([-1, 0, 1]),
    ),
    max_size=40,
    unique_by=lambda one: one.asked_at,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(duel_lists, st.randoms(use_true_random=False))
def test_the_order_in_which_choices_arrive_does_not_matter(duels: list[Duel], rng: random.Random) -> None:
    shuffled = list(duels)
    rng.shuffle(shuffled)
    assert weigh_voters(list_voters(duels), cap=3, now=80) == weigh_voters(list_voters(shuffled), cap=3, now=80)


@settings(max_examples=60, deadline=None)
@given(duel_lists, st.floats(0, 200), st.floats(0, 200))
def test_who_has_entered_stays_entered_with_the_same_score(duels: list[Duel], one: float, other: float) -> None:
    early, late = sorted((one, other))
    known = [d if d.chosen_at is None or d.chosen_at <= early else Duel(d.user, d.asked_at, None, 0) for d in duels]
    known = [d for d in known if d.asked_at <= early]
    before, _ = enter_users(list_voters(known), now=early)
    after, _ = enter_users(list_voters(duels), now=late)
    assert after[: len(before)] == before


def simulate(probabilities: list[float], *, users: int, paths: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """First crossing (user number, or a large one) of E+ and E- on paths of one duel a user: (lose, tie, win)."""
    rng = np.random.default_rng(seed)
    y = rng.choice([-1.0, 0.0, 1.0], p=probabilities, size=(paths, users))
    crossed = []
    for sign in (1, -1):
        sums = np.zeros((paths, len(BETS)))
        first = np.full(paths, 10**9)
        for n in range(users):
            sums += np.log1p(sign * y[:, n, None] * BETS)
            over = np.exp(sums).mean(axis=1) >= 20
            first = np.where(over & (first == 10**9), n + 1, first)
        crossed.append(first)
    return crossed[0], crossed[1]


def ever_crossed(win: float, users: int) -> np.ndarray:
    """Exact P(E+ has reached 20 by user n): one duel a user, no ties, dynamic program over the number of wins."""
    alive, gone, out = np.array([1.0]), 0.0, []
    wins_up, wins_down = np.log1p(BETS), np.log1p(-BETS)
    for n in range(1, users + 1):
        alive = np.concatenate([alive * (1 - win), [0.0]]) + np.concatenate([[0.0], alive * win])
        wins = np.arange(n + 1)[:, None]
        logs = np.minimum(wins * wins_up + (n - wins) * wins_down, 700)
        over = np.exp(logs - 3).mean(axis=1) >= 20 * math.exp(-3)
        gone += alive[over].sum()
        alive = np.where(over, 0.0, alive)
        out.append(gone)
    return np.array(out)


def test_80_percent_power_at_55_to_45_takes_1196_users() -> None:
    assert int(np.argmax(ever_crossed(0.55, 1300) >= 0.8)) + 1 == 1196


def test_80_percent_power_at_60_to_40_takes_295_users() -> None:
    assert int(np.argmax(ever_crossed(0.60, 400) >= 0.8)) + 1 == 295


def test_equal_policies_are_ever_promoted_in_3_9_percent_over_6000_users() -> None:
    assert ever_crossed(0.5, 6000)[-1] == pytest.approx(0.039, abs=0.0006)


def test_a_canary_that_loses_is_rolled_back_and_hardly_ever_promoted() -> None:
    promote, back = simulate([0.75 * 0.55, 0.25, 0.75 * 0.45], users=2000, paths=1000, seed=5)
    assert np.mean(back < promote) == pytest.approx(0.893, abs=0.03)
    assert np.mean(promote < back) == pytest.approx(0.004, abs=0.008)


def test_heavy_users_do_not_make_equal_policies_pass() -> None:
    rng = np.random.default_rng(11)
    passed = 0
    for _ in range(400):
        taste = rng.beta(1.17, 1.17, size=300)  # ICC .3: 1 / (a + b + 1)
        score = 2 * rng.binomial(5, taste) - 5
        running = np.zeros((300, 11))
        running[np.arange(300), score + 5] = 1
        passed += bool((log_superiority(running.cumsum(axis=0), 5) >= math.log(20)).any())
    assert passed / 400 <= 0.05

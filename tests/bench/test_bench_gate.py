"""The gate's bench: what its lines say, and that its worlds are what they claim to be."""

import numpy as np
import pytest

from bench.gate.figures import Row, about, at_most, error_of_share
from bench.gate.first_requests import Rates, looks_passed
from bench.gate.paths import NEVER, find_all_crossings, find_crossings, find_simulated_power
from bench.gate.people import People, ask_people, list_scores


def test_a_figure_holds_within_the_simulations_error():
    assert Row("x", 0.06, at_most(0.05), error=0.011).holds
    assert not Row("x", 0.06, at_most(0.05), error=0.009).holds
    assert Row("x", 1196, about(1196)).holds and not Row("x", 1197, about(1196)).holds


def test_the_error_of_a_share_is_two_standard_errors_and_never_nought():
    assert error_of_share(0.5, 100) == pytest.approx(0.1)
    assert error_of_share(0.0, 100) == pytest.approx(0.02)


def test_a_rollout_that_wins_always_crosses_when_its_e_value_does():
    # (1/8) sum (1 + l_j)^n reaches 20 at n = 10: 15.0 after nine wins, 22.4 after ten
    wins = np.ones(40, dtype=int)
    assert find_crossings(wins, 1) == (10, NEVER)
    better, worse = find_all_crossings(np.stack([wins, -wins]), 1)
    assert better.tolist() == [10, NEVER] and worse.tolist() == [NEVER, 10]


def test_the_users_for_a_power_are_those_after_which_that_share_has_crossed():
    assert find_simulated_power(np.array([5, 1, 3, NEVER, 4]), 0.8) == 5


def test_the_first_place_draws_choices_and_no_policy_gains_by_it():
    people = People(ties=0.0, undecided=0.0, first_bias=0.15)
    duels = [own[0] for own in ask_people(people, 4000, np.random.default_rng(1)).values()]
    first = np.mean([duel.outcome == (1 if duel.canary_first else -1) for duel in duels])
    assert first == pytest.approx(0.65, abs=0.025)
    assert np.mean([duel.outcome for duel in duels]) == pytest.approx(0.0, abs=0.04)


def test_of_heavy_users_scores_count_at_most_the_first_duels():
    duels = ask_people(People(heavy=True, correlation=0.3), 500, np.random.default_rng(2))
    assert max(map(len, duels.values())) == 60
    assert np.abs(list_scores(duels, 5)).max() <= 5


def test_a_canary_without_errors_passes_and_one_that_always_errs_never_does():
    rng = np.random.default_rng(3)
    assert looks_passed(Rates(0.0, 0.0), 400, 0.5, rng, 100)
    assert not looks_passed(Rates(1.0, 0.0), 400, 0.5, rng, 100)

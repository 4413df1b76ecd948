"""E-values of the gate beside those of the package ville, observation by observation."""

import math

import numpy as np
import pytest
import ville

from gateway.rollout.pure.evidence import BETS, invert_bets, log_inferiority, log_superiority, score_values
from gateway.rollout.pure.rates import log_split_e

CAP = 3
_FIXED = 1e-300  # ville's bets are then always at their cap, which is the bet that is fixed here


def count_scores(scores: np.ndarray) -> np.ndarray:
    running = np.zeros((len(scores), 2 * CAP + 1))
    running[np.arange(len(scores)), scores + CAP] = 1
    return running.cumsum(axis=0)


def mix_bets(values: np.ndarray, null: float, scale: float, alternative: str) -> np.ndarray:
    tests = (
        ville.BettingTest(null, bounds=(-1, 1), alternative=alternative, alpha=_FIXED, c=bet * scale) for bet in BETS
    )
    return ville.evalues.combine(np.stack([test.fit(values).e_values_ for test in tests]), axis=0)


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(3).integers(-CAP, CAP + 1, size=300)


@pytest.mark.parametrize("delta", [0.0, 0.1])
def test_superiority_is_the_mean_of_villes_betting_tests_at_our_bets(scores: np.ndarray, delta: float) -> None:
    ours = np.exp(log_superiority(count_scores(scores), CAP, delta))
    np.testing.assert_allclose(ours, mix_bets(scores / CAP, delta, 1 + delta, "greater"), rtol=1e-9)


def test_inferiority_is_the_mean_of_villes_betting_tests_on_the_other_side(scores: np.ndarray) -> None:
    ours = np.exp(log_inferiority(count_scores(scores), CAP))
    np.testing.assert_allclose(ours, mix_bets(scores / CAP, 0.0, 1.0, "less"), rtol=1e-9)


def test_villes_tests_reach_their_line_just_at_the_ends_of_the_interval(scores: np.ndarray) -> None:
    total = count_scores(scores)[-1:]
    low, high = invert_bets(total, CAP, 0.05)
    assert float(low[0]) < total[0] @ score_values(CAP) / len(scores) < float(high[0])
    assert mix_bets(scores / CAP, float(low[0]), 1.0, "greater")[-1] == pytest.approx(20, rel=1e-4)
    assert mix_bets(scores / CAP, float(high[0]), 1.0, "less")[-1] == pytest.approx(20, rel=1e-4)


@pytest.mark.parametrize("weight", [0.05, 0.25, 0.5])
def test_the_split_is_tested_as_by_villes_bernoulli_test(weight: float) -> None:
    arms = (np.random.default_rng(4).random(400) < 1.3 * weight).astype(float)
    theirs = ville.BernoulliTest(weight, prior=(100 * weight, 100 * (1 - weight))).fit(arms).log_e_values_
    for n in (1, 10, 400):
        num = int(arms[:n].sum())
        assert log_split_e([(weight, num, n - num)]) == pytest.approx(theirs[n - 1], rel=1e-9, abs=1e-9)


def test_equal_policies_reach_the_line_within_alpha_by_both() -> None:
    rng, num = np.random.default_rng(5), 0
    for _ in range(100):
        values = rng.choice([-1.0, 1.0], size=200)
        num += bool((np.log(mix_bets(values, 0.0, 1.0, "greater")) >= math.log(20)).any())
    assert num <= 5 + 2 * math.sqrt(100 * 0.05 * 0.95)

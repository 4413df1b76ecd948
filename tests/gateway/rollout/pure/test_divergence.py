"""The guardrail of the divergence: its estimate and its test worked out by hand, held against an oracle, and how often it errs."""

import math

import numpy as np
import pytest
import ville

from bench.gate.divergence import MARGIN, draw_rare, draw_unequal, share_crossed
from gateway.rollout.pure.divergence import (
    MIN_ANSWERS,
    DivergenceTally,
    Drift,
    _log_e,
    bound_divergence,
    compare_answers,
    compare_next_tokens,
    judge_divergence,
    log_beyond_e,
    log_within_e,
    tally_divergences,
)
from gateway.rollout.pure.guardrails import Guardrail


def logs(**probabilities: float) -> dict[int, float]:
    return {int(name[1:]): math.log(value) for name, value in probabilities.items()}


def test_two_known_distributions_are_compared_exactly() -> None:
    canary, stable = logs(t1=0.5, t2=0.25, t3=0.25), logs(t1=0.25, t2=0.25, t3=0.5)
    assert compare_next_tokens(canary, stable) == pytest.approx(0.25 * math.log(2), rel=1e-12)  # .5 ln 2 + 0 - .25 ln 2
    assert compare_next_tokens(canary, canary) == 0


def test_what_one_of_both_does_not_name_counts_as_one_token_and_never_for_more_than_it_is() -> None:
    canary, stable = logs(t1=0.6, t2=0.3), logs(t1=0.2, t3=0.7)
    by_hand = 0.6 * math.log(0.6 / 0.2) + 0.4 * math.log(0.4 / 0.8)
    assert compare_next_tokens(canary, stable) == pytest.approx(by_hand, rel=1e-12)
    rng = np.random.default_rng(3)
    for _ in range(50):
        p, q = rng.dirichlet(np.full(40, 0.3), size=2) + 1e-12
        top = [{int(token): math.log(one[token]) for token in np.argsort(-one)[:20]} for one in (p, q)]
        assert 0 <= compare_next_tokens(*top) <= float(np.sum(p * np.log(p / q))) + 1e-6


def test_what_stable_never_says_is_far_and_not_infinitely_so() -> None:
    assert compare_next_tokens(logs(t1=1.0), logs(t2=1.0)) == pytest.approx(
        0.0, abs=1e-5
    )  # nothing in common to tell them by
    assert compare_next_tokens(logs(t1=0.5, t2=0.5), logs(t1=1.0)) == pytest.approx(
        0.5 * math.log(0.5) + 0.5 * math.log(0.5 / 1e-6), rel=1e-9
    )


def test_the_places_drawn_give_an_answers_mean_without_bias() -> None:
    rng = np.random.default_rng(4)
    canary, stable = ([{1: math.log(p), 2: math.log(1 - p)} for p in rng.uniform(0.05, 0.95, 60)] for _ in range(2))
    drawn = [
        compare_answers([canary[i] for i in places], [stable[i] for i in places])
        for places in (rng.choice(60, 8, replace=False) for _ in range(4000))
    ]
    spread = float(np.std(drawn)) / math.sqrt(len(drawn))
    assert abs(float(np.mean(drawn)) - compare_answers(canary, stable)) < 4 * spread < 0.02


def test_each_users_first_counts_and_no_answer_for_more_than_eight_margins() -> None:
    tally = tally_divergences([("a", 1.0), ("b", 100.0), ("a", 3.0)], MARGIN)
    assert tally == DivergenceTally(2, 5.0, 17.0) and tally.mean == 2.5  # 1 and 8 * .5


def test_the_e_value_by_hand() -> None:
    tally = DivergenceTally(99, 9.9, 9.9)  # with the made-up one of 4: mean .139, variance .259 - .0193
    mean, variance = (9.9 + 4.0) / 100, (9.9 + 16.0) / 100 - ((9.9 + 4.0) / 100) ** 2
    z = math.sqrt(0.08 / 9) * 100 * (MARGIN - mean) / math.sqrt(variance)
    expected = math.log(2 / 3) + z * z / 2 + math.log((1 + math.erf(z / math.sqrt(2))) / 2)
    assert log_within_e(tally, MARGIN) == pytest.approx(expected, rel=1e-12) and expected > math.log(20)
    assert log_beyond_e(tally, MARGIN) < 0


def test_the_e_value_reaches_its_line_where_an_oracles_one_sided_border_is() -> None:
    precision = 1 / 0.08
    for num in (50, 200, 1000):
        border = float(ville.normal_mixture(num, 0.05, precision, one_sided=True))
        for factor, is_reached in ((0.999, False), (1.001, True)):
            shift = factor * border / num  # the mean in standard deviations
            half = (num - 1) / 2  # a made-up one at the mean keeps both moments
            tally = DivergenceTally(num - 1, 2 * half * shift, (num - 1) * shift**2 + num)
            assert (_log_e(tally, 0.0, shift, sign=1) >= math.log(20)) == is_reached


def test_the_interval_is_that_of_the_oracle() -> None:
    values = np.random.default_rng(5).gamma(0.5, 0.4, 400)
    found = bound_divergence(tally_divergences([(str(n), v) for n, v in enumerate(values.tolist())], 1e9), 0.1)
    oracle = ville.AsymptoticCS(alpha=0.1, min_samples=MIN_ANSWERS)
    oracle.rho_ = 1 / 0.08
    oracle.update(values)
    assert found == pytest.approx((oracle.lower_[-1], oracle.upper_[-1]), rel=1e-9)


@pytest.mark.parametrize("shape", [0.3, 1.0, 5.0])
def test_it_errs_in_at_most_alpha_of_rollouts_at_the_margin(shape: float) -> None:
    """500 rollouts, looked at after every answer."""
    values = draw_unequal(shape, MARGIN, 500, np.random.default_rng(6))
    assert share_crossed(values, beyond=False) <= 0.05 + 0.02  # two standard errors
    assert share_crossed(values, beyond=True) <= 0.05 + 0.02


def test_rare_answers_that_are_far_do_not_hide_among_many_that_are_near() -> None:
    assert share_crossed(draw_rare(500, np.random.default_rng(7)), beyond=False) <= 0.05 + 0.02


def test_how_many_answers_it_takes() -> None:
    rng = np.random.default_rng(8)
    near, far = (draw_unequal(1.0, mean, 200, rng)[:, :60] for mean in (0.1, 1.5))
    assert share_crossed(near, beyond=False) >= 0.9 and share_crossed(far, beyond=True) >= 0.9
    assert share_crossed(near, beyond=True) == 0 == share_crossed(far, beyond=False)


def judge(tally: DivergenceTally, *, is_seeable: bool = True, accepts_blind: bool = False) -> tuple[Guardrail, Drift]:
    return judge_divergence(tally, margin=MARGIN, alpha=0.05, is_seeable=is_seeable, accepts_blind=accepts_blind)


def test_a_sensor_that_never_measured_is_blind_until_that_is_accepted() -> None:
    assert judge(DivergenceTally(), is_seeable=False)[0].status == "not enough data"
    blind, drift = judge(DivergenceTally())
    assert (blind.status, blind.needed, blind.canary, drift.low) == ("blind", True, None, None)
    accepted, _ = judge(DivergenceTally(), accepts_blind=True)
    assert (accepted.status, accepted.needed) == ("not enough data", False)
    seeing, _ = judge(DivergenceTally(1, 9.0, 81.0), accepts_blind=True)  # what it sees is never left out
    assert (seeing.status, seeing.needed, seeing.seen) == ("not enough data", True, 1)


def test_near_passes_far_fails_and_what_is_missing_is_counted() -> None:
    few = DivergenceTally(10, 0.5, 0.05)
    guardrail, drift = judge(few)
    assert guardrail.status == "not enough data" and guardrail.canary == pytest.approx(0.05)
    enough = DivergenceTally(10 + guardrail.missing, 0.5, 0.05)
    assert judge(enough)[0].status == "pass" and judge(enough)[0].missing == 0
    assert judge(DivergenceTally(enough.num - 1, 0.5, 0.05))[0].status == "not enough data"
    far, drift = judge(DivergenceTally(50, 75.0, 125.0))
    assert far.status == "fail" and drift.low is not None and drift.low > MARGIN
    assert judge(DivergenceTally(50, 200.0, 800.0))[0].status == "fail"  # all alike

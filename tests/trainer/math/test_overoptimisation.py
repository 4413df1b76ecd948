"""Over-optimisation: the curve of Gao et al., and a proxy that rises while the auditor falls."""

import math
import random

import pytest

from trainer.math.overoptimisation import GainCurve, find_turn, fit_gain_curve


def test_the_curve_is_that_of_the_paper() -> None:
    curve = GainCurve(a=1.0, b=0.5)
    assert curve.predict(math.e**2) == pytest.approx(math.e * 0.5)  # d = e: e (1 - .5)
    assert curve.peak_kl == pytest.approx(math.e**2)  # ln d = a/b - 1 = 1
    around = [curve.predict(curve.peak_kl * factor) for factor in (0.9, 1.0, 1.1)]
    assert max(around) == around[1]
    assert GainCurve(1.0, 0.0).peak_kl == math.inf
    assert curve.predict(0) == 0


def test_the_fit_finds_the_curve() -> None:
    kls = [0.5, 1, 2, 5, 10, 30]
    curve = fit_gain_curve(kls, [GainCurve(0.8, 0.3).predict(kl) for kl in kls])
    assert (curve.a, curve.b) == pytest.approx((0.8, 0.3))


def test_the_fit_bears_noise() -> None:
    rng = random.Random(0)
    kls = [rng.uniform(0.2, 40) for _ in range(300)]
    curve = fit_gain_curve(kls, [GainCurve(0.8, 0.3).predict(kl) + rng.gauss(0, 0.1) for kl in kls])
    assert (curve.a, curve.b) == pytest.approx((0.8, 0.3), abs=0.02)


def test_one_point_makes_no_curve() -> None:
    with pytest.raises(ValueError, match="two different"):
        fit_gain_curve([2.0, 2.0], [1.0, 1.0])


def test_a_series_that_passed_its_peak_says_so() -> None:
    kls = [1.0, 4.0, 9.0, 16.0, 36.0]
    auditor = [GainCurve(1.0, 0.5).predict(kl) for kl in kls]  # largest near 7.4 nats
    assert "near 7.4 nats" in find_turn(kls, [1, 2, 3, 4, 5], auditor)
    assert find_turn(kls, [5, 4, 3, 2, 1], auditor) == ""
    assert find_turn(kls[:2], [1, 2], auditor[:2]) == ""
    assert find_turn(kls, [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]) == ""

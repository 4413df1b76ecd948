"""The outage bench's ratios: within a round, against all up, and the median over rounds."""

import pytest

from bench.outage.figures import Phase, Sample, compute_figures


def sample(phase: Phase, number: int, p99_us: float, failed: int = 0) -> Sample:
    return Sample(phase, number, 1000, failed, p99_us / 2, p99_us)


def test_a_ratio_is_the_median_over_rounds_of_the_same_rounds_p99s():
    samples = [sample(phase, number, 1000) for phase in Phase for number in range(3) if phase is not Phase.BROKER_HUNG]
    samples += [sample(Phase.BROKER_HUNG, number, p99) for number, p99 in enumerate((1500, 9000, 1100))]
    figures = compute_figures(samples)
    assert figures == {
        "broker_down_p99_ratio": 1.0,
        "broker_hung_p99_ratio": 1.5,
        "database_down_p99_ratio": 1.0,
        "a_a_p99_ratio": 1.0,
        "failed": 0,
    }


def test_a_slow_round_moves_both_sides_of_a_ratio():
    samples = [sample(phase, number, 1000 * (1 + 9 * number)) for phase in Phase for number in range(2)]
    assert compute_figures(samples)["database_down_p99_ratio"] == 1.0


def test_whatever_failed_in_any_phase_counts():
    samples = [sample(phase, 0, 1000, failed=2 if phase is Phase.DATABASE_DOWN else 0) for phase in Phase]
    assert compute_figures([*samples, sample(Phase.ALL_UP, 1, 1000, failed=1)])["failed"] == 3


def test_a_phase_that_was_not_measured_is_no_figure():
    with pytest.raises(ValueError, match="broker hung"):
        compute_figures([sample(phase, 0, 1000) for phase in Phase if phase is not Phase.BROKER_HUNG])

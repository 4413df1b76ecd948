"""Medians, ratios within a round, and the names in the last line."""

import pytest

from bench.gateway.figures import Counts, Samples, compute_figures, read_metric, render_table
from bench.gateway.loads import Load, Sample
from bench.gateway.peers import AGAIN, DIRECT, GATEWAY, RAW, ROUTER_PEER

NAMES = """
    ratio_rust_16 ratio_litellm_16 ratio_direct_16 p50_over_rust_1 p99_over_rust_1 cpu_over_rust ratio_stream_raw
    chunk_cpu_over_rust recorded_ratio recorded_ratio_2000 a_a_ratio first_token_added_p50_ms pair_over_single
    rss_mb
"""


def make_sample(peer: str, load: Load, round_number: int, **values: float) -> Sample:
    fields = {"seconds": 1.0, "answers": 100, "failed": 0, "cpu_s": 0.01, **values}
    return Sample(peer=peer, load=load, round=round_number, **fields)  # type: ignore[arg-type]


def test_a_ratio_is_taken_within_each_round_before_the_median() -> None:
    samples = Samples(
        make_sample(peer, Load.SIXTEEN, number, answers=answers)
        for number, (direct, gateway) in enumerate([(1000, 500), (100, 90), (10, 6)])  # a machine that slows down
        for peer, answers in ((DIRECT, direct), (GATEWAY, gateway))
    )
    assert samples.ratio(GATEWAY, DIRECT, Load.SIXTEEN, lambda s: s.answers_s) == 0.6
    assert samples.median(GATEWAY, Load.SIXTEEN, lambda s: s.answers_s) == 90


def test_added_latency_is_what_lies_above_the_mock_alone() -> None:
    samples = Samples(
        [
            make_sample(DIRECT, Load.ONE, 0, whole_p50_us=20.0),
            make_sample(ROUTER_PEER, Load.ONE, 0, whole_p50_us=120.0),
            make_sample(GATEWAY, Load.ONE, 0, whole_p50_us=70.0),
        ]
    )
    assert samples.added_ratio(GATEWAY, ROUTER_PEER, Load.ONE, lambda s: s.whole_p50_us) == 0.5
    assert samples.added(GATEWAY, Load.ONE, lambda s: s.whole_p50_us) == 50.0


def test_a_round_in_which_a_peer_beat_the_mock_says_nothing_of_added_latency() -> None:
    samples = Samples(
        make_sample(peer, Load.ONE, number, whole_p99_us=value)
        for number, values in enumerate([(50.0, 40.0, 60.0), (50.0, 60.0, 70.0)])
        for peer, value in zip((DIRECT, ROUTER_PEER, GATEWAY), values, strict=True)
    )
    assert samples.added_ratio(GATEWAY, ROUTER_PEER, Load.ONE, lambda s: s.whole_p99_us) == 2.0


def test_recorded_ratios_are_medians_over_rounds_and_null_without_counters() -> None:
    samples = Samples([make_sample(GATEWAY, Load.SIXTEEN, 0)])
    counts = {Load.SIXTEEN: [Counts(50, 50), Counts(80, 20), Counts(60, 40)], Load.RATE: [Counts(0, 0)]}
    figures = compute_figures(samples, counts, 100.0, None)
    assert figures["recorded_ratio"] == 0.6
    assert figures["recorded_ratio_2000"] is None


def test_the_last_line_has_every_figure_and_null_for_what_was_not_measured() -> None:
    samples = Samples(
        [
            make_sample(GATEWAY, Load.SIXTEEN, 0, answers=150, cpu_s=0.006),
            make_sample(AGAIN, Load.SIXTEEN, 0, answers=153),
            make_sample(ROUTER_PEER, Load.SIXTEEN, 0, answers=100, cpu_s=0.008),
            make_sample(DIRECT, Load.SIXTEEN, 0, answers=600),
            make_sample(GATEWAY, Load.STREAMS, 0, events=300),
            make_sample(RAW, Load.STREAMS, 0, events=200),
            make_sample(DIRECT, Load.STREAMS, 0, events=900),
            make_sample(GATEWAY, Load.FIRST, 0, first_p50_us=220.0),
            make_sample(DIRECT, Load.FIRST, 0, first_p50_us=20.0),
        ]
    )
    figures = compute_figures(samples, {}, 98.7654321, 1.08)
    assert list(figures) == NAMES.split()
    assert {name: value for name, value in figures.items() if value is not None} == {
        "ratio_rust_16": 1.5,
        "ratio_direct_16": 0.25,
        "cpu_over_rust": 0.5,
        "ratio_stream_raw": 1.5,
        "a_a_ratio": 1.02,
        "first_token_added_p50_ms": 0.2,
        "pair_over_single": 1.08,
        "rss_mb": 98.7654,
    }


def test_failed_requests_are_summed_by_peer() -> None:
    samples = Samples([make_sample(GATEWAY, load, 0, failed=2) for load in (Load.ONE, Load.SIXTEEN)])
    assert samples.num_failed() == {GATEWAY: 4}


def test_the_table_marks_loads_that_a_peer_did_not_get() -> None:
    lines = render_table(Samples([make_sample(GATEWAY, Load.SIXTEEN, 0)]), {GATEWAY: 99.6}).splitlines()
    assert lines[1].split() == [GATEWAY, "100", "100.0", *"-" * 6, "100"]
    assert len(lines[0]) == len(lines[1])


@pytest.mark.parametrize(("recorded", "dropped", "ratio"), [(3, 1, 0.75), (0, 4, 0.0), (0, 0, None)])
def test_recorded_ratio_is_of_all_that_was_counted(recorded: float, dropped: float, ratio: float | None) -> None:
    assert Counts(recorded, dropped).ratio == ratio


def test_a_metric_is_summed_over_its_labels_and_no_other_with_the_same_beginning() -> None:
    text = (
        "# HELP lost_total Lost ones.\n# TYPE lost_total counter\n"
        'lost_total{reason="full"} 2.0\nlost_total{reason="too long"} 3.0\nlost_total_created 1.7e+09\n'
    )
    assert read_metric(text, "lost_total") == 5.0
    assert read_metric(text, "missing_total") == 0.0


def test_counts_of_a_load_are_what_was_added_in_it() -> None:
    assert Counts(10, 4) - Counts(7, 4) == Counts(3, 0)

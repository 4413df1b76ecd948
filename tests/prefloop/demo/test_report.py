"""The report's keys and figures, and the final examination's arithmetic."""

import json
import os
import subprocess
import sys
import time

import pytest

from prefloop.demo.final import Judgement, conclude, measure_win_rate, measure_wrong_rate, wilson_interval
from prefloop.demo.report import (
    RssSampler,
    build_report,
    count_rollouts,
    find_first_promoted,
    measure_choice_to_canary_s,
    write_report,
)

KEYS = (
    "seed choices comparisons requests failed_requests rounds rounds_stopped_by_gate rollouts inconclusive promotions "
    "aborts win_rate_before win_rate_after wrong_rate_before wrong_rate_after reward_accuracy seconds_total "
    "seconds_to_first_answer seconds_nth_choice_to_canary swap_seconds rss_peak_mb"
)


def test_wilson_interval_matches_hand_computed_numbers():
    share = wilson_interval(140, 200)  # centre .7096037 / 1.0192073, half width 1.9230279 * sqrt(.0010740091)
    assert (share.value, share.n) == (0.7, 200)
    assert share.low == pytest.approx(0.633209, abs=1e-6)
    assert share.high == pytest.approx(0.759253, abs=1e-6)
    even = wilson_interval(10, 20)
    assert (even.low, even.high) == pytest.approx((0.299298, 0.700702), abs=1e-6)
    assert wilson_interval(0, 10).low == 0.0 and wilson_interval(10, 10).high == pytest.approx(1.0, abs=1e-12)


def test_a_share_of_nothing_is_refused():
    for wins, n in ((0, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError):
            wilson_interval(wins, n)


def test_a_win_is_one_and_a_tie_is_half():
    answers = [Judgement("complete", 1.0), Judgement("terse", 0.2), Judgement("rude", -1.0), Judgement("wrong", -2.0)]
    references = [Judgement("terse", 0.2), Judgement("terse", 0.2), Judgement("terse", 0.2), Judgement("wrong", -2.0)]
    assert measure_win_rate(answers, references).value == 0.5  # 1 + 1/2 + 0 + 1/2 of 4
    assert measure_wrong_rate(answers) == 0.25


def test_the_examination_compares_both_policies_with_the_same_reference():
    utilities = {"good": Judgement("complete", 1.0), "bad": Judgement("wrong", -2.0)}
    result = conclude(
        "c-0",
        "c-1",
        ["a", "b", "c", "d"],
        ["bad", "bad", "good", "good"],
        ["bad", "good", "good", "bad"],
        ["good"] * 4,
        lambda question, answer: utilities[answer],
        seed=1,
    )
    assert result.win_rate_before.value == 0.5 and result.win_rate_after.value == 0.75
    assert result.wrong_rate_before == 0.5 and result.wrong_rate_after == 0.0
    assert len(result.examples) == 3 and all(example.after == "good" for example in result.examples)


def test_rollouts_are_counted_by_verdict():
    rollouts = [
        {"phase": "Healthy", "reason": ""},
        {"phase": "Baking", "reason": None},
        {"phase": "Degraded", "reason": "Inconclusive"},
        {"phase": "Degraded", "reason": "Inferior"},
        {"phase": "Progressing", "reason": ""},
    ]
    counts = count_rollouts(rollouts)
    assert (counts.rollouts, counts.promotions, counts.inconclusive, counts.aborts) == (5, 2, 1, 1)


def test_the_first_promoted_checkpoint_is_that_of_the_oldest_promoted_rollout():
    rollouts = [
        {"phase": "Baking", "checkpoint": "c-3", "created_at": 30.0},
        {"phase": "Healthy", "checkpoint": "c-2", "created_at": 20.0},
        {"phase": "Degraded", "checkpoint": "c-1", "created_at": 10.0},
    ]
    assert find_first_promoted(rollouts) == "c-2"
    assert find_first_promoted(rollouts[2:]) is None


def test_time_to_canary_runs_from_the_choice_that_triggered_its_round():
    rounds = [
        {"number": 2, "checkpoint": "c-2", "trigger_choice_at": 150.0},
        {"number": 1, "checkpoint": None, "trigger_choice_at": 100.0},
        {"number": 3, "checkpoint": "c-3", "trigger_choice_at": 170.0},
    ]
    assert measure_choice_to_canary_s(rounds, {"c-2": 190.5, "c-3": 300.0}) == 40.5
    assert measure_choice_to_canary_s(rounds, {}) is None


def make_report():
    return build_report(
        seed=7,
        started_at=1000.0,
        now=1400.0,
        people={
            "acks": 90,
            "choices": 91,
            "comparisons": 95,
            "requests": 100,
            "failed_requests": 0,
            "first_answer_at": 1040,
        },
        gateway={"swap": {"last_swap_s": 0.7}, "canary_first_answer_at": {"c-1": 1260.0}},
        trainer={
            "reward": {"accuracy_heldout": 0.74},
            "rounds": [
                {"number": 1, "outcome": "published", "checkpoint": "c-1", "trigger_choice_at": 1200.0},
                {"number": 2, "outcome": "stopped", "checkpoint": None, "trigger_choice_at": 1300.0},
            ],
        },
        rollouts=[{"phase": "Baking", "reason": ""}],
        final=None,
        rss_peak_mb=3500.04,
    )


def test_report_has_exactly_the_promised_keys(tmp_path):
    path = tmp_path / "deep" / "r.json"
    write_report(path, make_report())
    written = json.loads(path.read_text())
    assert list(written) == KEYS.split()
    assert [file.name for file in path.parent.iterdir()] == ["r.json"]


def test_report_computes_its_figures():
    report = make_report()
    assert (report.choices, report.rounds, report.rounds_stopped_by_gate, report.promotions) == (90, 2, 1, 1)
    assert (report.seconds_total, report.seconds_to_first_answer) == (400.0, 40.0)
    assert (report.seconds_nth_choice_to_canary, report.swap_seconds) == (60.0, 0.7)
    assert (report.reward_accuracy, report.win_rate_after, report.rss_peak_mb) == (0.74, None, 3500.0)


def test_a_run_in_which_nothing_came_up_is_reported_too():
    report = build_report(
        seed=1, started_at=0, now=5, people={}, gateway={}, trainer={}, rollouts=[], final=None, rss_peak_mb=1
    )
    assert report.requests == 0 and report.seconds_to_first_answer is None and report.reward_accuracy is None


def test_memory_is_summed_over_all_descendants():
    alone = RssSampler().sample()
    child = subprocess.Popen(
        [sys.executable, "-c", "x = bytearray(80_000_000); print(1, flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        child.stdout.readline()
        sampler = RssSampler(os.getpid(), period_s=0.02).start()
        time.sleep(0.1)
        assert sampler.stop() > alone + 70
    finally:
        child.communicate(b"\n")

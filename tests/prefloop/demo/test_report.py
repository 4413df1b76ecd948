"""The report's keys and figures, and the final examination's arithmetic."""

import json
import os
import subprocess
import sys
import time

import pytest

from prefloop.demo.examination import (
    Answer,
    Judgement,
    conclude,
    measure_degenerate,
    measure_win_rate,
    measure_wrong_rate,
)
from prefloop.demo.report import (
    RssSampler,
    build_report,
    count_rollouts,
    find_first_promoted,
    measure_choice_to_canary_s,
    sum_phases,
    write_report,
)
from prefloop.demo.worlds.catalogue import WORLDS

CAPITALS, ASSISTANT = WORLDS["capitals"], WORLDS["assistant"]

KEYS = (
    "seed algorithm choices comparisons requests failed_requests rounds rounds_stopped_by_gate rollouts inconclusive promotions "
    "aborts win_rate_before win_rate_after wrong_rate_before wrong_rate_after degenerate_before degenerate_after "
    "win_rate_by_family reward_accuracy reward_accuracy_prequential seconds_total seconds_to_first_answer "
    "seconds_nth_choice_to_canary swap_seconds seconds_by_phase rss_peak_mb"
)


def test_win_rates_count_ties_half_and_say_by_how_many_facts() -> None:
    answers = [Judgement("complete", 1.0), Judgement("terse", 0.2), Judgement("rude", -1.0), Judgement("wrong", -2.0)]
    references = [Judgement("terse", 0.2), Judgement("terse", 0.2), Judgement("terse", 0.2), Judgement("wrong", -2.0)]
    share = measure_win_rate(answers, references, ["Peru", "Peru", "Cuba", "Cuba"])
    assert (share.value, share.n, share.clusters) == (0.5, 4, 2)  # 1 + 1/2 + 0 + 1/2 of 4
    assert measure_wrong_rate(CAPITALS, answers) == 0.25 and measure_wrong_rate(ASSISTANT, answers) is None


def test_the_share_of_degenerate_answers_counts_each_fault_and_any() -> None:
    answers = [
        Answer("Paris."),
        Answer("Name the capital of France."),
        Answer("Paris, Paris, Paris, Paris, Paris, Paris, and", True),
    ]
    shares = measure_degenerate(CAPITALS, ["Name the capital of France."] * 3, answers)
    third = pytest.approx(1 / 3)
    assert shares == {
        "any": pytest.approx(2 / 3),
        "copied_prompt": third,
        "too_short": 0.0,
        "repetition": third,
        "unfinished": third,
    }


def test_the_examination_compares_both_policies_with_the_same_reference() -> None:
    utilities = {"good.": Judgement("complete", 1.0), "bad.": Judgement("wrong", -2.0)}
    questions = [f"Name the capital of {country}." for country in ("Peru", "Cuba", "Iran", "Iraq")]
    sets = {
        "reference": ["bad.", "bad.", "good.", "good."],
        "before": ["bad.", "good.", "good.", "bad."],
        "after": ["good."] * 4,
    }
    result = conclude(
        CAPITALS,
        "c-0",
        "c-1",
        questions,
        {name: [Answer(text) for text in texts] for name, texts in sets.items()},
        lambda question, answer, is_cut: utilities[answer],
        seed=1,
    )
    assert result.win_rate_before.value == 0.5 and result.win_rate_after.value == 0.75
    assert result.wrong_rate_before == 0.5 and result.wrong_rate_after == 0.0
    assert result.by_family == {"capitals": result.win_rate_after}
    assert len(result.examples) == 3 and all(example.after == "good." for example in result.examples)


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


PHASES = {"phases": {"training": 30.0, "evaluating": 9.5}}


def make_report():
    return build_report(
        seed=7,
        algorithm="ppo",
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
            "reward": {"accuracy_heldout": 0.74, "prequential_accuracy": 0.71},
            "rounds": [
                {
                    "number": 1,
                    "outcome": "published",
                    "checkpoint": "c-1",
                    "trigger_choice_at": 1200.0,
                    "details": PHASES,
                },
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
    assert (report.reward_accuracy_prequential, report.seconds_by_phase) == (
        0.71,
        {"training": 30.0, "evaluating": 9.5},
    )


def test_phases_add_up_over_rounds_and_are_null_where_nobody_says_them():
    assert sum_phases([{"details": PHASES}, PHASES, {}]) == {"training": 60.0, "evaluating": 19.0}
    assert sum_phases([{"number": 1}]) is None


def test_a_run_in_which_nothing_came_up_is_reported_too():
    report = build_report(
        seed=1,
        algorithm="dpo",
        started_at=0,
        now=5,
        people={},
        gateway={},
        trainer={},
        rollouts=[],
        final=None,
        rss_peak_mb=1,
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

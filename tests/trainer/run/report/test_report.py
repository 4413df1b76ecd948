"""The report of a round, and its plots."""

from __future__ import annotations

import math

from trainer.run.report.plots import draw_lines
from trainer.run.report.report import ReportData, name_report, render_report
from trainer.run.rounds import Ending, OpenRound

OPENED = OpenRound(12, "dpo", 1, 400, 0.0, 1_760_000_000.0)


def make(**more: object) -> ReportData:
    ending = Ending(
        reason="passed: reward gain +0.40",
        checkpoint="c-000003-aaaaaaaaaaaa",
        metrics={"policy_kl": 1.25},
        details={"phases": {"training": 61.5}, "num_new": 400, "num_replayed": 200, "parent": "c-000001-bbbbbbbbbbbb"},
    )
    return ReportData(OPENED, ending, 1_760_000_100.0, **more)  # type: ignore[arg-type]


def test_a_report_shows_reason_rows_phases_figures_and_curves() -> None:
    curve = [{"share": 0.1 * n, "loss": 0.7 - 0.01 * n, "margin": n, "kl": 0.1 * n, "accuracy": 0.5} for n in range(5)]
    history = [{"version": float(n), "accuracy": 0.5 + 0.1 * n} for n in range(3)]
    win_rate = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 40}
    rungs = [
        {"checkpoint": f"c-{n}", "first": "c-0", "win_rate": win_rate, "judge": "auditor", "frozen": {}}
        | (
            {"kl": 2.0 * n, "gains": {"reward": 0.5 * n, "auditor": -0.25 * n}} if n else {}
        )  # an older release wrote neither
        for n in range(3)
    ]
    page = render_report(make(curve=curve, history=history, rungs=rungs))
    for words in ("Round 12", "passed: reward gain +0.40", "400 new, 200 replayed", "61.5 s", "policy_kl", "1.25"):
        assert words in page
    assert (
        page.count("<svg") == 6
    )  # loss, margin, accuracy, KL, what is foreseen, and the reward model beside the auditor
    assert "auditor</span>" in page and "2025-10-09 08:53:20 UTC" in page


def test_what_people_and_policies_wrote_is_escaped() -> None:
    samples = [{"prompt": "<script>alert(1)</script>", "before": "<b>", "after": "a\nb"}]
    page = render_report(make(samples=samples, set_aside=[("event-1", "round", "<img src=x>")]))
    assert "<script" not in page and "<img" not in page
    assert "&lt;script&gt;alert(1)" in page and "event-1" in page


def test_a_round_that_never_trained_has_a_report_too() -> None:
    page = render_report(ReportData(OPENED, Ending(reason="nothing to learn"), 1_760_000_100.0))
    assert "stopped" in page and "nothing to learn" in page and "<svg" not in page


def test_reports_are_named_by_checkpoint_or_round() -> None:
    assert name_report(12, "c-000003-aaaaaaaaaaaa") == "c-000003-aaaaaaaaaaaa.html"
    assert name_report(12, None) == "r-000012.html"


def test_lines_lie_where_their_numbers_say_and_what_is_not_finite_is_left_out() -> None:
    drawn = draw_lines("t", {"a": [(0, 0), (1, math.nan), (2, 1)]})
    assert 'points="52.0,156.0 412.0,10.0"' in drawn
    assert draw_lines("t", {"a": [(0, 1)], "b": []}) == ""
    assert draw_lines("flat", {"a": [(0, 3), (1, 3)]}).count("83.0") == 2  # in the middle, and no division by nothing


def test_the_ladder_and_the_parts_of_the_reward_are_shown() -> None:
    win_rate = {"value": 0.55, "low": 0.45, "high": 0.65, "n": 100}
    rung = {"checkpoint": "c-3", "first": "c-0", "win_rate": win_rate, "judge": "auditor", "frozen": {"facts": 0.9}}
    details = {
        "ladder": ["facts is 90% at c-3"],
        "reward_parts": [{"name": "harm", "weight": 2.0, "before": 0, "after": -1}],
    }
    ending = Ending(reason="passed", checkpoint="c-3", details=details)
    page = render_report(ReportData(OPENED, ending, 1_760_000_100.0, rungs=[rung]))
    for words in (
        "beside c-0",
        "55% (45% to 65%)",
        "auditor",
        "90%",
        "facts is 90% at c-3",
        "part by part",
        "harm",
        "-1",
    ):
        assert words in page

"""The offline gate's rules, on figures made by hand."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from trainer.judge.gate import RULES, Verdict, decide, is_worse
from trainer.judge.measures import Figure, Figures
from trainer.math.intervals import Estimate
from trainer.sections.judging import GateSection

SETTINGS = GateSection()


def figure(name: str, stable: float, candidate: float, error: float = 0.01, part: str = "", n: int = 60) -> Figure:
    return Figure(name, candidate, stable, Estimate(candidate - stable, error, n - 1, n), part)


PASSING = Figures(
    rows=(
        figure("reward", 0.0, 0.5, 0.1), figure("auditor", 0.0, 0.3, 0.2), figure("facts", 0.9, 0.9),
        figure("references", 0.8, 0.8), figure("tasks", 0.5, 0.5), figure("attacks", 0.3, 0.3),
        figure("bias", 0.4, 0.4), figure("rouge_l", 0.4, 0.4), figure("harm", 0.0, 0.0), figure("refusals", 0.0, 0.0),
        figure("unfinished", 0.02, 0.02), figure("looping", 0.01, 0.01), figure("copied", 0.0, 0.0),
        figure("short", 0.01, 0.02), figure("anchors", 1.0, 1.1), figure("tokens", 50.0, 28.0),
    ),
    kl_base=5.0, kl_stable=4.0, num_prompts=60,
)  # fmt: skip


def change(name: str, candidate: float, error: float = 0.01, part: str = "", n: int = 60) -> Figures:
    stable = next(row.stable for row in PASSING.rows if row.name == name)
    kept = tuple(row for row in PASSING.rows if part or row.name != name)
    return replace(PASSING, rows=(*kept, figure(name, stable, candidate, error, part, n)))


def test_a_candidate_within_every_budget_passes_and_says_what_it_gained() -> None:
    verdict = decide(PASSING, SETTINGS)
    assert verdict.ok
    assert verdict.reason == "passed: reward gain +0.50 (+0.31 to +0.69), right facts 90% (90% before)"
    assert verdict.figures["policy_facts"] == 0.9 and verdict.figures["kl_base"] == 5.0


@pytest.mark.parametrize(
    ("figures", "reason"),
    [
        (change("facts", 0.8), "right facts fell from 90% to 80%"),
        (change("references", 0.7), "well-formed right answers fell"),
        (change("tasks", 0.3), "tasks done fell"),
        (change("attacks", 0.5), "successful attacks rose from 30% to 50%"),
        (change("bias", 1.5), "bias between paired prompts rose from 0.40 to 1.50"),
        (change("rouge_l", 0.1), "ROUGE-L on demonstrations fell"),
        (change("harm", 0.1), "answers with harmful words rose"),
        (change("refusals", 0.3), "refusals rose"),
        (change("unfinished", 0.1), "unfinished answers rose from 2% to 10%"),
        (change("looping", 0.1), "answers that repeat themselves rose"),
        (change("copied", 0.1), "answers that copy the question rose"),
        (change("short", 0.2), "answers under three words rose from 1% to 20%"),
        (change("anchors", 1.6), "perplexity on the anchors rose from 2.72 to 4.95"),
        (change("tokens", 200.0), "answers of 200.0 tokens, 50.0 before"),
        (change("tokens", 0.5), "answers of 0.5 tokens"),
        (replace(PASSING, kl_base=50.0), "KL to the base is 50.0 nats"),
        (replace(PASSING, kl_base=math.nan), "not finite: KL to the base"),
        (change("facts", math.nan), "not finite: facts"),
        (change("anchors", math.inf), "not finite: anchors"),
        (change("reward", 0.1, error=0.1), "reward gain +0.10 is not clearly above 0 (from -0.09)"),
        (change("reward", -0.5), "reward gain -0.50"),
        (change("auditor", -0.5, error=0.1), "over-optimised: the auditor's mean fell by 0.50"),
        (change("facts", 0.6, part="lang=de", n=15), "right facts fell from 90% to 60% where lang=de"),
    ],
)
def test_each_broken_budget_stops_the_round_with_its_reason(figures: Figures, reason: str) -> None:
    verdict = decide(figures, SETTINGS)
    assert not verdict.ok
    assert reason in verdict.reason


@pytest.mark.parametrize(
    "figures",
    [
        change("facts", 0.86),  # clear, but within the budget
        change("facts", 0.8, error=0.08),  # above the budget, but not clear
        change("unfinished", 0.1, error=0.1, n=5),
        change("auditor", -0.1, error=0.2),  # an auditor that has little to go by
        change("facts", 0.82, part="lang=de", n=15),  # within a slice's wider budget
    ],
)
def test_noise_and_small_changes_stop_nothing(figures: Figures) -> None:
    assert decide(figures, SETTINGS).ok


def test_far_above_its_budget_a_change_needs_less_evidence() -> None:
    rule = next(rule for rule in RULES if rule.name == "facts")
    fall = Estimate(-0.4, 0.2, 9, 10)  # of ten facts: 2 standard errors, clear at .05 and not at .01
    assert is_worse(rule, fall, 0.05, 0.01)
    assert not is_worse(rule, fall, 0.2, 0.01)  # twice the budget only
    assert not is_worse(rule, Estimate(-0.4, 0.3, 9, 10), 0.05, 0.01)
    assert not is_worse(rule, Estimate(0.4, 0.01, 9, 10), 0.05, 0.01)  # for the better


def test_terse_answers_may_spread_where_they_were_usual_already() -> None:
    usual = replace(PASSING, rows=(*(r for r in PASSING.rows if r.name != "short"), figure("short", 0.15, 0.8)))
    assert decide(usual, SETTINGS).ok
    assert not decide(change("short", 0.12), SETTINGS).ok  # where one answer in a hundred was


def test_what_could_not_be_measured_stops_nothing_and_is_named() -> None:
    few = replace(PASSING, rows=PASSING.rows[:1], missing=("facts", "the auditor"))
    verdict = decide(few, SETTINGS)
    assert verdict.ok
    assert verdict.reason.endswith("; facts not available; the auditor not available")


def test_with_nothing_to_judge_by_the_gate_is_closed_and_says_how_to_open_it() -> None:
    verdict = decide(Figures(), SETTINGS, path="state/frozen.jsonl")
    assert isinstance(verdict, Verdict) and not verdict.ok
    assert verdict.reason.startswith("cannot be judged: ")
    assert verdict.reason.endswith("to state/frozen.jsonl") and '"fact"' in verdict.reason


def test_without_a_reward_model_no_gain_can_be_shown() -> None:
    assert "no reward model" in decide(replace(PASSING, rows=PASSING.rows[2:]), SETTINGS).reason


def test_where_a_positive_gain_is_enough_it_need_not_be_clear() -> None:
    lenient = GateSection(gain="positive")
    assert decide(change("reward", 0.1, error=0.1), lenient).ok
    assert "reward gain +0.00 is not above 0" in decide(change("reward", 0.0, error=0.1), lenient).reason
    assert "right facts fell" in decide(change("facts", 0.5), lenient).reason  # the budgets hold


def test_the_auditor_may_be_made_the_judge_of_the_gain() -> None:
    strict = GateSection(gain_by="auditor")
    assert "auditor gain +0.30 is not clearly above 0" in decide(PASSING, strict).reason
    assert decide(change("auditor", 0.9), strict).ok


def taught(gain: float, reward: float = 0.0) -> Figures:
    """Of a round on demonstrations, ten of which were held out, each likelier by gain on average."""
    kept = tuple(row for row in PASSING.rows if row.name not in ("reward", "auditor"))
    return replace(
        PASSING,
        rows=(*kept, figure("reward", 0.0, reward), figure("likelihood", -2.0, gain - 2.0, error=0.1, n=10)),
    )


def test_an_sft_round_gains_by_held_out_demonstrations_where_the_reward_model_has_learnt_nothing() -> None:
    verdict = decide(taught(0.5), SETTINGS, kind="sft")
    # student's t with 9 degrees of freedom, one-sided at .05 * 6 / pi^2 = .0304: 2.15
    assert verdict.reason.startswith("passed: held-out demonstrations gain +0.50 (+0.29 to +0.71)")
    assert verdict.ok and not decide(taught(0.5), SETTINGS).ok  # a DPO round has to please people
    noise = decide(taught(0.2), SETTINGS, kind="sft")
    assert "held-out demonstrations gain +0.20 is not clearly above 0 (from -0.01)" in noise.reason
    assert decide(taught(0.2), GateSection(gain="positive"), kind="sft").ok


def test_an_sft_round_that_the_reward_model_or_a_budget_speaks_against_is_stopped() -> None:
    assert "the reward's mean fell by 0.50" in decide(taught(0.5, reward=-0.5), SETTINGS, kind="sft").reason
    assert decide(taught(0.5, reward=-0.01), SETTINGS, kind="sft").ok  # not clearly
    rounding = tuple(figure("reward", 0, -1e-8, 1e-9) if row.name == "reward" else row for row in taught(0.5).rows)
    assert decide(replace(PASSING, rows=rounding), SETTINGS, kind="sft").ok
    wrong = tuple(figure("facts", 0.9, 0.5) if row.name == "facts" else row for row in taught(0.5).rows)
    assert "right facts fell" in decide(replace(PASSING, rows=wrong), SETTINGS, kind="sft").reason


def test_an_sft_round_without_held_out_demonstrations_is_judged_by_the_reward_model() -> None:
    assert decide(PASSING, SETTINGS, kind="sft").reason.startswith("passed: reward gain +0.50")
    assert "reward gain +0.00" in decide(change("reward", 0.0), SETTINGS, kind="sft").reason


def test_a_gain_must_be_clearer_in_every_later_round() -> None:
    borderline = change("reward", 0.25, error=0.1)  # 2.5 standard errors
    assert decide(borderline, SETTINGS, look=1).ok
    assert not decide(borderline, SETTINGS, look=5).ok


def test_many_failures_are_told_shortly() -> None:
    rows = tuple(replace(row, change=Estimate(math.copysign(5, -1), 0.0, 59, 60)) for row in PASSING.rows)
    assert "more" in decide(replace(PASSING, rows=rows), SETTINGS).reason


def test_noise_in_thirty_rounds_is_seldom_taken_for_a_gain() -> None:
    rng = random.Random(3)
    fooled = 0
    for _ in range(200):
        gains = [change("reward", rng.gauss(0, 0.1), error=0.1) for _ in range(30)]
        fooled += any(decide(each, SETTINGS, number).ok for number, each in enumerate(gains, 1))
    assert fooled / 200 <= 0.09  # alpha .05, sampled 200 times

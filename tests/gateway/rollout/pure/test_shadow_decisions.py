"""How often shadowing ends a sound canary, and lets a bad one through, looking after every twenty answers."""

from dataclasses import replace

import msgspec
import numpy as np

from gateway.rollout.desired_state import convert_rules
from gateway.rollout.pure import machine
from gateway.rollout.pure.findings import Inputs, weigh
from gateway.sections.rollout import RolloutSection
from gateway.tables.rows import Observation, RolloutRow

RULES = convert_rules(RolloutSection.model_validate({"shadow": {"share": 1.0, "min_answers": 200, "min_s": 0.0}}))
ROW = RolloutRow(
    id="r", policy="p", checkpoint="c", stable="s", aa=False, phase="Shadowing", analysis="Running", reason="Shadowing", step=0,
    step_started_at=0.0, weight=0.0, duel_share=0.0, salt="00", generation=1, created_at=0.0, started_at=None,
    phase_started_at=0.0, finished_at=None, resume_phase="", waived="", decision_digest="d", settings="", pair="r", num_tries=1,
)  # fmt: skip


def play(canary: float, stable: float, rng: np.random.Generator) -> str:
    """The reason by which shadowing ends; rates of errors."""
    observed: list[Observation] = []
    for user, draws in enumerate(rng.random((300, 2)).tolist()):
        for arm, rate, draw in (("canary", canary, draws[0]), ("stable", stable, draws[1])):
            observed.append(
                Observation("r", f"u{user}", arm, "duel", 0.5, draw < rate, False, False, None, float(user))
            )
        if user % 20 == 19 and (moved := machine.decide(ROW, weigh(RULES, Inputs(1.0, [], observed)), 1.0, RULES)):
            return moved.reason.value
    return ""


def test_how_often_it_ends_a_sound_canary_and_lets_a_bad_one_through() -> None:
    rng = np.random.default_rng(11)
    sound = [play(0.05, 0.05, rng) for _ in range(80)]
    assert sound.count("Shadowed") >= 0.87 * 80  # a false alarm in at most .125 of rollouts: here it was far fewer
    bad = [play(0.35, 0.05, rng) for _ in range(25)]
    assert bad.count("Errors") == 25


def test_nothing_passes_on_too_few_answers_however_long_it_takes() -> None:
    few = [
        Observation("r", f"u{user}", arm, "duel", 0.5, False, False, False, None, 0.0)
        for user in range(199) for arm in ("canary", "stable")
    ]  # fmt: skip
    findings = weigh(RULES, Inputs(1.0, [], few))
    assert machine.decide(ROW, findings, RULES.max_s - 1, RULES) is None
    ended = machine.decide(ROW, findings, RULES.max_s, RULES)
    assert ended is not None and ended.row.phase == machine.ABORTING and ended.reason == machine.Reason.INCONCLUSIVE


def test_a_guardrail_that_only_warns_holds_nothing_up() -> None:
    cut = [
        Observation("r", f"u{user}", arm, "duel", 0.5, False, arm == "canary", False, None, 0.0)
        for user in range(200) for arm in ("canary", "stable")
    ]  # fmt: skip
    assert RULES.actions["truncation"] == "warn"
    moved = machine.decide(ROW, weigh(RULES, Inputs(1.0, [], cut)), 1.0, RULES)
    assert moved is not None and moved.row.phase == machine.PROGRESSING and moved.decides
    strict = msgspec.structs.replace(RULES, actions={**RULES.actions, "truncation": "pause"})
    ended = machine.decide(replace(ROW), weigh(strict, Inputs(1.0, [], cut)), 1.0, strict)
    assert ended is not None and ended.reason == machine.Reason.TRUNCATION and ended.row.phase == machine.ABORTING


def test_a_guardrail_that_fails_without_being_grave_enough_to_end_it_holds_it_up() -> None:
    """44 errors to 20, of 200 pairs: E is 32, which fails at 20; weighed it is 7.3, which does not go back at 8."""
    pairs = [
        Observation("r", f"u{user}", arm, "duel", 0.5, user < 44 if arm == "canary" else user >= 180, False, False, None, 0.0)
        for user in range(200) for arm in ("canary", "stable")
    ]  # fmt: skip
    findings = weigh(RULES, Inputs(1.0, [], pairs))
    assert findings.guardrails.rates[0].status == "fail"
    assert machine.decide(ROW, findings, 1.0, RULES) is None

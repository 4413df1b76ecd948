"""Decides which event is due for a rollout, from what is known now. Pure: no clock, no database, no engine.

Where an event leads, transitions.py says; what operators do is in operator_moves.py. Never promotes by itself for lack of evidence,
or without every guardrail. Where the rules let operators decide early, it waits for their approval as Unproven.
"""

import math

from gateway.rollout.pure.evidence import Evidence
from gateway.rollout.pure.findings import REASON_OF, Findings, find_alarm, log_rollback
from gateway.rollout.pure.guardrails import FAIL
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.transitions import (
    ABORTING,
    BAKING,
    DEGRADED,
    HEALTHY,
    ON_TRIAL,
    PAUSED,
    PENDING,
    PROGRESSING,
    PROMOTING,
    ROLLING_BACK,
    SHADOWING,
    WAITING,
    Event,
    Reason,
    Transition,
    fire,
)
from gateway.tables.rows import RolloutRow

__all__ = [
    "ABORTING", "BAKING", "DEGRADED", "HEALTHY", "ON_TRIAL", "PAUSED", "PENDING", "PROGRESSING", "PROMOTING", "ROLLING_BACK",
    "SHADOWING", "WAITING", "Reason", "Transition",
]  # fmt: skip

SPLIT = "split"  # the name by which a skewed split is waived


def is_superior(row: RolloutRow, evidence: Evidence, rules: Rules, now: float) -> bool:
    """Whether the canary has proved better, with enough users and after enough time."""
    return evidence.log_e >= -math.log(rules.alpha) and _is_long_enough(row, evidence, rules, now)


def do_gates_hold(findings: Findings, rules: Rules) -> bool:
    """Whether every guardrail has passed, no slice loses and no tripwire has tripped.

    Where operators decide early, whether no guardrail fails or is blind.
    """
    return not findings.list_blocking(accepts_too_little=rules.approve_early)


def may_ask_early(row: RolloutRow, findings: Findings, rules: Rules, now: float) -> bool:
    """Whether the rules let an operator decide already, on less evidence than would promote: it does not by itself."""
    is_due = _is_long_enough(row, findings.evidence, rules, now)
    return rules.approve_early and do_gates_hold(findings, rules) and is_due


def _is_long_enough(row: RolloutRow, evidence: Evidence, rules: Rules, now: float) -> bool:
    age_s = now - (row.started_at if row.started_at is not None else now)
    return evidence.users >= rules.min_users and age_s >= rules.min_s


def is_skewed(row: RolloutRow, findings: Findings, rules: Rules) -> bool:
    """Whether users, or places on the page, are not split as intended, and nobody has accepted it."""
    return SPLIT not in row.waived.split() and findings.log_e_split >= math.log(rules.sample_ratio_threshold)


def decide(row: RolloutRow, findings: Findings, now: float, rules: Rules) -> Transition | None:
    """Return the transition that is due, or None. Covers the phases on trial, Shadowing and Baking."""
    if row.phase == SHADOWING:
        return _end_shadowing(row, findings, now, rules)
    if row.phase not in (*ON_TRIAL, BAKING):
        return None
    log_e, worst = log_rollback(findings, rules)
    if log_e >= math.log(rules.rollback_threshold):
        return fire(row, Event.BREACHED, worst, now, decides=True)
    if row.phase in (PROGRESSING, WAITING) and (held := _hold(row, findings, rules, now)):
        return held
    if row.phase == BAKING:
        return _end_baking(row, now, rules)
    if row.phase == WAITING:
        return _approve_by_itself(row, findings, now, rules)
    if row.phase == PAUSED and (row.resume_phase == WAITING or row.reason not in (Reason.NO_DATA, Reason.METRIC_ERROR)):
        return _recover(row, findings, now)
    if row.phase == PROGRESSING and is_superior(row, findings.evidence, rules, now) and do_gates_hold(findings, rules):
        return fire(row, Event.PROVEN, Reason.SUPERIOR, now, decides=True)
    if row.phase == PROGRESSING and may_ask_early(row, findings, rules, now):
        return fire(row, Event.ASKED_EARLY, Reason.UNPROVEN, now, decides=True)
    if _is_spent(row, findings.evidence, now, rules):
        why, note = _find_obstacle(findings, rules)
        return fire(row, Event.SPENT, why, now, note=note, decides=True)
    return _recover(row, findings, now) if row.phase == PAUSED else _walk(row, findings, now, rules)


def _end_shadowing(row: RolloutRow, findings: Findings, now: float, rules: Rules) -> Transition | None:
    """End it by an alarm, or when enough was seen. Nobody is served by it, so what is to pause ends it too."""
    log_e, worst = log_rollback(findings, rules)
    if log_e >= math.log(rules.rollback_threshold):
        return fire(row, Event.BREACHED, worst, now, decides=True)
    if (alarmed := find_alarm(findings, rules)) is not None:
        return fire(row, Event.BREACHED, REASON_OF[alarmed], now, decides=True)
    age_s, num = now - row.phase_started_at, findings.guardrails.users
    failing = [rate for rate in findings.guardrails.rates if rate.status == FAIL and rules.actions[rate.name] != "warn"]
    if age_s >= rules.shadow.min_s and num >= rules.shadow.min_answers and not failing:
        return start(row, now, rules, Event.SHADOWED, Reason.SHADOWED, decides=True)
    if age_s >= rules.max_s:
        return fire(row, Event.SPENT, Reason.INCONCLUSIVE if num else Reason.NO_DATA, now, decides=True)
    return None


def _hold(row: RolloutRow, findings: Findings, rules: Rules, now: float) -> Transition | None:
    """Pause for what is set to pause, unless somebody has looked at it and resumed."""
    if is_skewed(row, findings, rules) and rules.actions["split"] != "warn":
        if rules.actions["split"] == "roll_back":
            return fire(row, Event.BREACHED, Reason.SAMPLE_RATIO_MISMATCH, now, decides=True)
        return fire(row, Event.SKEWED, Reason.SAMPLE_RATIO_MISMATCH, now, decides=True, resume_phase=row.phase)
    alarmed = find_alarm(findings, rules)
    if alarmed is None or alarmed in row.waived.split():
        return None
    return fire(row, Event.ALARMED, REASON_OF[alarmed], now, decides=True, resume_phase=row.phase)


def _end_baking(row: RolloutRow, now: float, rules: Rules) -> Transition | None:
    if now - row.phase_started_at < rules.baking_s:
        return None
    how = _how_promoted(row)
    return fire(row, Event.BAKED, Reason.BAKED, now, standing=how, kept_note=row.note, weight=0.0, finished_at=now)


def _is_spent(row: RolloutRow, evidence: Evidence, now: float, rules: Rules) -> bool:
    age_s = now - (row.started_at if row.started_at is not None else now)
    return evidence.users >= rules.max_users * row.num_tries or age_s >= rules.max_s


def _find_obstacle(findings: Findings, rules: Rules) -> tuple[Reason, str]:
    """Why there is no verdict in time, and what a note says of it: too little evidence, or what forbids to promote all the same."""
    if findings.evidence.log_e < -math.log(rules.alpha):
        return Reason.INCONCLUSIVE, ""
    if findings.losing_slices:
        return Reason.SLICE, ", ".join(one.label for one in findings.losing_slices)
    if findings.tripped:
        return Reason.TRIPWIRE, ", ".join(one.name for one in findings.tripped)
    return Reason.INCONCLUSIVE, ""


def _recover(row: RolloutRow, findings: Findings, now: float) -> Transition | None:
    """End a pause whose cause has ended: there is data again, or it can be weighed again."""
    if row.reason == Reason.METRIC_ERROR:
        why = Reason.METRICS_BACK
    elif row.reason == Reason.NO_DATA and findings.has_data:
        why = Reason.DATA
    else:
        return None
    is_waiting = row.resume_phase == WAITING
    return fire(
        row, Event.RECOVERED, why, now, standing=Reason.SUPERIOR if is_waiting else Reason.RUNNING,
        analysis="Successful" if is_waiting else "Running", step_started_at=now,
    )  # fmt: skip


def _walk(row: RolloutRow, findings: Findings, now: float, rules: Rules) -> Transition | None:
    """Advance a step whose time is over; without any data pause instead."""
    hold_s = rules.steps[row.step].hold_s
    if hold_s is None or now - row.step_started_at < hold_s:
        return None
    if not findings.has_data:
        return fire(row, Event.STARVED, Reason.NO_DATA, now, resume_phase=row.phase)
    if row.step + 1 >= len(rules.steps):
        return None
    return advance_step(row, Event.STEPPED, Reason.NEXT_STEP, now, rules)


def advance_step(
    row: RolloutRow, event: Event, reason: Reason, now: float, rules: Rules, actor: str = "controller"
) -> Transition:
    """To the next step of the ramp, which there is."""
    step, weight = row.step + 1, rules.steps[row.step + 1].weight
    note = f"step {step + 1} of {len(rules.steps)}, {weight:.0%}"
    return fire(row, event, reason, now, actor=actor, note=note, step=step, weight=weight, step_started_at=now)


def _approve_by_itself(row: RolloutRow, findings: Findings, now: float, rules: Rules) -> Transition | None:
    due_at = approve_at(row, rules)
    if due_at is None or now < due_at or findings.list_blocking():
        return None
    return fire(row, Event.AUTO_APPROVED, Reason.AUTO_APPROVED, now, decides=True)


def approve_at(row: RolloutRow, rules: Rules) -> float | None:
    """When the rollout approves itself (epoch seconds); None if only an operator can."""
    return row.phase_started_at + rules.approve_countdown_s if rules.auto_approve and row.phase == WAITING else None


def next_move_at(row: RolloutRow, rules: Rules) -> float | None:
    """When the row next moves by the clock alone; None if it waits for evidence or for a person."""
    if row.phase == PROGRESSING and row.step + 1 < len(rules.steps):
        hold_s = rules.steps[row.step].hold_s
        return None if hold_s is None else row.step_started_at + hold_s
    if row.phase == BAKING:
        return row.phase_started_at + rules.baking_s
    if row.phase == SHADOWING:
        return row.phase_started_at + rules.shadow.min_s
    return approve_at(row, rules)


# What follows from what the controller did to engines and pointer


def begin(row: RolloutRow, now: float, rules: Rules) -> Transition:
    """The canary is loaded and proved: its trial begins, or what comes before it."""
    if rules.shadow.share > 0:
        return fire(row, Event.SHADOW, Reason.LOADED, now, standing=Reason.SHADOWING, step_started_at=now)
    return start(row, now, rules, Event.LOADED, Reason.LOADED)


def start(
    row: RolloutRow, now: float, rules: Rules, event: Event, reason: Reason, *, actor: str = "controller",
    decides: bool = False,
) -> Transition:  # fmt: skip
    """It begins to serve the users of the first step."""
    return fire(
        row, event, reason, now, standing=Reason.RUNNING, actor=actor, decides=decides, started_at=now, step=0,
        step_started_at=now, weight=rules.steps[0].weight,
    )  # fmt: skip


def promote(row: RolloutRow, now: float, rules: Rules) -> Transition:
    """The canary is stable from here on, the old one keeps a share."""
    return fire(
        row, Event.SWITCHED, Reason.PROMOTED, now, standing=_how_promoted(row), kept_note=row.note,
        weight=rules.baking_weight, duel_share=0.0,
    )  # fmt: skip


def _how_promoted(row: RolloutRow) -> Reason:
    """A promotion past the gates is known as such for ever."""
    return Reason.FORCED if row.reason == Reason.FORCED else Reason.PROMOTED


def end_rollback(row: RolloutRow, now: float) -> Transition:
    """What served before is loaded and proved, and serves again."""
    reason = Reason(row.reason)
    return fire(row, Event.LOADED, reason, now, note=row.note, analysis=row.analysis)


def finish_abort(row: RolloutRow, now: float) -> Transition:
    """Nobody is served by the canary any more."""
    return fire(row, Event.DRAINED, Reason(row.reason), now, note=row.note, weight=0.0, finished_at=now)


def supersede(row: RolloutRow, now: float) -> Transition:
    """A newer checkpoint takes the place of one that was not loaded yet."""
    return fire(row, Event.SUPERSEDED, Reason.SUPERSEDED, now, weight=0.0, finished_at=now)


def give_up(row: RolloutRow, now: float) -> Transition:
    """What the phase needs cannot be loaded: the trial ends, and a roll back leaves what serves."""
    finished_at = now if row.phase == ROLLING_BACK else None
    return fire(row, Event.LOAD_FAILED, Reason.LOAD_FAILED, now, finished_at=finished_at)


def hold_unweighable(row: RolloutRow, now: float, note: str) -> Transition:
    """What cannot be judged passes nothing."""
    return fire(row, Event.UNWEIGHABLE, Reason.METRIC_ERROR, now, note=note, resume_phase=row.phase)

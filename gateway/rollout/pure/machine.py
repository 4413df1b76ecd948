"""Decides the next transition of a rollout from what is known now. Pure: no clock, no database, no engine.

Operators' wishes (approve, abort, pause, resume) are functions too. A transition is carried out by the controller.
Never promotes by itself for lack of evidence, or without every guardrail. Where the rules let operators decide early, it
waits for their approval with the reason Unproven.
"""

import math
from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.errors import RefusedAction
from gateway.rollout.pure.evidence import Evidence
from gateway.rollout.pure.guardrails import Guardrails
from gateway.rollout.pure.rules import Rules
from gateway.tables.rows import RolloutRow

PENDING, PROGRESSING, PAUSED, WAITING = "Pending", "Progressing", "Paused", "WaitingPromotion"
PROMOTING, BAKING, HEALTHY, ABORTING, DEGRADED = "Promoting", "Baking", "Healthy", "Aborting", "Degraded"
ON_TRIAL = (PROGRESSING, PAUSED, WAITING)  # phases in which both arms serve and evidence is gathered


class Reason(StrEnum):
    """Why a rollout is where it is. What operators write stands beside it, as a note, and steers nothing."""

    CREATED = "Created"
    LOADED = "Loaded"
    RUNNING = "Running"
    NEXT_STEP = "NextStep"
    NO_DATA = "NoData"
    DATA = "Data"
    METRIC_ERROR = "MetricError"
    SAMPLE_RATIO_MISMATCH = "SampleRatioMismatch"
    SUPERIOR = "Superior"
    UNPROVEN = "Unproven"
    INFERIOR = "Inferior"
    HARM = "Harm"
    ERRORS = "Errors"
    LATENCY = "Latency"
    INCONCLUSIVE = "Inconclusive"
    LOAD_FAILED = "LoadFailed"
    SUPERSEDED = "Superseded"
    AUTO_APPROVED = "AutoApproved"
    APPROVED = "Approved"
    FORCED = "Forced"
    PROMOTED = "Promoted"
    BAKED = "Baked"
    OPERATOR = "Operator"
    RESUMED = "Resumed"
    ROLLED_BACK = "RolledBack"

    @classmethod
    def _missing_(cls, value: object) -> "Reason":
        """Words in the place of a code are an operator's, of an older gateway."""
        return cls.OPERATOR


_BY_THEMSELVES = (Reason.NO_DATA, Reason.METRIC_ERROR)  # pauses that end when their cause ends
_ROLLBACK_WEIGHTS = ((Reason.INFERIOR, 0.4), (Reason.HARM, 0.3), (Reason.ERRORS, 0.2), (Reason.LATENCY, 0.1))


@dataclass(frozen=True)
class Transition:
    """The row as it should become; reason and note are for the audit trail. decides: write a decision row."""

    row: RolloutRow
    reason: Reason
    actor: str = "controller"
    note: str = ""
    decides: bool = False


def log_rollback(evidence: Evidence, guardrails: Guardrails) -> tuple[float, Reason]:
    """log of .4 E_preference + .3 E_harm + .2 E_errors + .1 E_latency, and the reason that weighs most."""
    logs = {
        Reason.INFERIOR: evidence.log_e_inferior,
        Reason.HARM: guardrails.log_alarm("harm"),
        Reason.ERRORS: guardrails.log_alarm("errors"),
        Reason.LATENCY: guardrails.log_alarm("latency"),
    }
    terms = {name: math.log(weight) + logs[name] for name, weight in _ROLLBACK_WEIGHTS}
    top = max(terms.values())
    return top + math.log(sum(math.exp(term - top) for term in terms.values())), max(
        terms, key=lambda name: terms[name]
    )


def is_superior(row: RolloutRow, evidence: Evidence, rules: Rules, now: float) -> bool:
    """Whether the canary has proved better, with enough users and after enough time."""
    return evidence.log_e >= -math.log(rules.alpha) and _is_long_enough(row, evidence, rules, now)


def may_ask_early(row: RolloutRow, evidence: Evidence, guardrails: Guardrails, rules: Rules, now: float) -> bool:
    """Whether the rules let an operator decide already, on less evidence than would promote: it does not by itself."""
    return rules.approve_early and guardrails.all_pass and _is_long_enough(row, evidence, rules, now)


def _is_long_enough(row: RolloutRow, evidence: Evidence, rules: Rules, now: float) -> bool:
    age_s = now - (row.started_at if row.started_at is not None else now)
    return evidence.users >= rules.min_users and age_s >= rules.min_s


def is_skewed(row: RolloutRow, guardrails: Guardrails, rules: Rules) -> bool:
    """Whether users, or places on the page, are not split as intended, and nobody has accepted it."""
    log_e = max(guardrails.log_e_split, guardrails.log_e_order)
    return not row.split_waived and log_e >= math.log(rules.sample_ratio_threshold)


def decide(row: RolloutRow, evidence: Evidence, guardrails: Guardrails, now: float, rules: Rules) -> Transition | None:
    """Return the transition that is due, or None. Covers the phases on trial and Baking's end."""
    if row.phase == BAKING:
        if now - row.phase_started_at >= rules.baking_s:
            return Transition(
                _enter(row, HEALTHY, _how_promoted(row), now, note=row.note, weight=0.0, finished_at=now), Reason.BAKED
            )
        return None
    if row.phase not in ON_TRIAL:
        return None
    log_e, worst = log_rollback(evidence, guardrails)
    if log_e >= math.log(rules.rollback_threshold):
        return Transition(_enter(row, ABORTING, worst, now, analysis="Failed"), worst, decides=True)
    if row.phase in (PROGRESSING, WAITING) and is_skewed(row, guardrails, rules):
        paused = pause(row, now, reason=Reason.SAMPLE_RATIO_MISMATCH)
        return replace(paused, decides=True)
    if row.phase == WAITING:
        return _approve_by_itself(row, guardrails, now, rules)
    if row.phase == PAUSED and row.resume_phase == WAITING:
        return None
    if row.phase == PAUSED and row.reason not in _BY_THEMSELVES:
        return None
    if row.phase == PROGRESSING and is_superior(row, evidence, rules, now) and guardrails.all_pass:
        return Transition(
            _enter(row, WAITING, Reason.SUPERIOR, now, analysis="Successful"), Reason.SUPERIOR, decides=True
        )
    if row.phase == PROGRESSING and may_ask_early(row, evidence, guardrails, rules, now):
        return Transition(_enter(row, WAITING, Reason.UNPROVEN, now), Reason.UNPROVEN, decides=True)
    if _is_spent(row, evidence, now, rules):
        aborting = _enter(row, ABORTING, Reason.INCONCLUSIVE, now, analysis="Inconclusive")
        return Transition(aborting, Reason.INCONCLUSIVE, decides=True)
    return _walk(row, has_data=evidence.votes > 0 or guardrails.users > 0, now=now, rules=rules)


def _is_spent(row: RolloutRow, evidence: Evidence, now: float, rules: Rules) -> bool:
    age_s = now - (row.started_at if row.started_at is not None else now)
    return evidence.users >= rules.max_users or age_s >= rules.max_s


def _walk(row: RolloutRow, *, has_data: bool, now: float, rules: Rules) -> Transition | None:
    """Advance a step whose time is over; without any data pause instead, and go on when there is some."""
    if row.phase == PAUSED:
        back = _enter(row, PROGRESSING, Reason.RUNNING, now, step_started_at=now)
        return Transition(back, Reason.DATA) if has_data else None
    hold_s = rules.steps[row.step].hold_s
    if hold_s is None or now - row.step_started_at < hold_s:
        return None
    if not has_data:
        return pause(row, now, reason=Reason.NO_DATA)
    if row.step + 1 >= len(rules.steps):
        return None
    step = row.step + 1
    moved = replace(row, step=step, weight=rules.steps[step].weight, step_started_at=now)
    return Transition(moved, Reason.NEXT_STEP, note=f"step {step + 1} of {len(rules.steps)}, {moved.weight:.0%}")


def _approve_by_itself(row: RolloutRow, guardrails: Guardrails, now: float, rules: Rules) -> Transition | None:
    due_at = approve_at(row, rules)
    if due_at is None or now < due_at or not guardrails.all_pass:
        return None
    return Transition(_enter(row, PROMOTING, Reason.AUTO_APPROVED, now), Reason.AUTO_APPROVED)


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
    return approve_at(row, rules)


def start(row: RolloutRow, now: float, rules: Rules) -> Transition:
    """Pending -> Progressing, once the canary is loaded and proved."""
    first = rules.steps[0].weight
    moved = _enter(
        row, PROGRESSING, Reason.RUNNING, now, analysis="Running", started_at=now, step_started_at=now, weight=first
    )
    return Transition(replace(moved, step=0), Reason.LOADED)


def promote(row: RolloutRow, now: float, rules: Rules) -> Transition:
    """Promoting -> Baking: the canary is stable from here on, the old one keeps a share."""
    weight = rules.baking_weight
    baking = _enter(row, BAKING, _how_promoted(row), now, note=row.note, weight=weight, duel_share=0.0)
    return Transition(baking, Reason.PROMOTED)


def _how_promoted(row: RolloutRow) -> Reason:
    """A promotion past the gates is known as such for ever."""
    return Reason.FORCED if row.reason == Reason.FORCED else Reason.PROMOTED


def finish_abort(row: RolloutRow, now: float) -> Transition:
    """Aborting -> Degraded, once nobody is served by the canary."""
    degraded = replace(row, phase=DEGRADED, phase_started_at=now, weight=0.0, finished_at=now)
    return Transition(degraded, Reason(row.reason), note=row.note)


def supersede(row: RolloutRow, now: float) -> Transition:
    """Pending -> Degraded: a newer checkpoint takes its place, or it could not be loaded."""
    return Transition(_enter(row, DEGRADED, Reason.SUPERSEDED, now, weight=0.0, finished_at=now), Reason.SUPERSEDED)


def approve(
    row: RolloutRow, guardrails: Guardrails, rules: Rules, generation: int, digest: str, actor: str, now: float
) -> Transition:
    """WaitingPromotion -> Promoting. Raises RefusedAction unless the operator saw this very decision and gates hold."""
    if row.phase != WAITING:
        raise RefusedAction(f"The rollout is {row.phase}, not {WAITING}.")
    if generation != row.generation or digest != row.decision_digest:
        raise RefusedAction("The rollout has moved on since you looked: look again, then approve.")
    if not guardrails.all_pass:
        names = ", ".join(r.name for r in guardrails.rates if r.needed and r.status != "pass")
        raise RefusedAction(f"Guardrails no longer pass: {names}.")
    if is_skewed(row, guardrails, rules):
        raise RefusedAction("Users are not split as intended.")
    return Transition(_enter(row, PROMOTING, Reason.APPROVED, now), Reason.APPROVED, actor)


def promote_past(row: RolloutRow, note: str, actor: str, now: float) -> Transition:
    """On trial -> Promoting whatever the gates say: an admin answers for it, in writing."""
    if row.phase not in ON_TRIAL:
        raise RefusedAction(f"The rollout is {row.phase}, not on trial.")
    return Transition(_enter(row, PROMOTING, Reason.FORCED, now, note=note), Reason.FORCED, actor, note)


def abort(row: RolloutRow, actor: str, now: float, *, reason: Reason = Reason.OPERATOR, note: str = "") -> Transition:
    """Any active phase -> Aborting. In Baking this goes back to the old checkpoint."""
    if row.phase in (HEALTHY, DEGRADED, ABORTING):
        raise RefusedAction(f"The rollout is {row.phase} already.")
    return Transition(_enter(row, ABORTING, reason, now, note=note, analysis="Failed"), reason, actor, note)


def pause(
    row: RolloutRow, now: float, *, reason: Reason = Reason.OPERATOR, actor: str = "controller", note: str = ""
) -> Transition:
    """Progressing or WaitingPromotion -> Paused: the weight stays, nothing moves."""
    if row.phase not in (PROGRESSING, WAITING):
        raise RefusedAction(f"The rollout is {row.phase}: only {PROGRESSING} and {WAITING} can pause.")
    return Transition(_enter(row, PAUSED, reason, now, note=note, resume_phase=row.phase), reason, actor, note)


def resume(row: RolloutRow, actor: str, now: float) -> Transition:
    """Paused -> where it was. After a skewed split, resuming accepts the split for this rollout."""
    if row.phase != PAUSED:
        raise RefusedAction(f"The rollout is {row.phase}, not {PAUSED}.")
    waived = row.split_waived or row.reason == Reason.SAMPLE_RATIO_MISMATCH
    back = row.resume_phase or PROGRESSING
    proved = Reason.SUPERIOR if row.analysis == "Successful" else Reason.UNPROVEN
    reason = proved if back == WAITING else Reason.RUNNING
    return Transition(_enter(row, back, reason, now, split_waived=waived, step_started_at=now), Reason.RESUMED, actor)


def _enter(row: RolloutRow, phase: str, reason: Reason, now: float, *, note: str = "", **changes: object) -> RolloutRow:
    return replace(row, phase=phase, reason=reason.value, note=note, phase_started_at=now, **changes)  # type: ignore[arg-type]

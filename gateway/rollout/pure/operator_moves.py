"""What operators do to a rollout, as transitions; who may do it, the API says. Pure.

Each raises RefusedAction where transitions.py has no way, or where more is asked than the phase.
"""

from gateway.errors import RefusedAction
from gateway.rollout.pure.findings import REASON_OF, Findings
from gateway.rollout.pure.machine import SPLIT, advance_step, do_gates_hold, is_skewed, start
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.transitions import (
    OPERATOR_EVENTS,
    ROLLING_BACK,
    SHADOWING,
    TRANSITIONS,
    WAITING,
    Event,
    Reason,
    Transition,
    find_next_phase,
    fire,
)
from gateway.tables.rows import RolloutRow

_GUARDRAIL_OF = {reason.value: name for name, reason in REASON_OF.items()} | {Reason.SAMPLE_RATIO_MISMATCH.value: SPLIT}
_SHORT_NAMES = {Event.SKIP: "skip", Event.ROLL_BACK: "rollback"}  # in the API's paths and on the command line


def list_actions(row: RolloutRow, num_steps: int) -> list[str]:
    """What an operator may do in the row's phase, by the names of the API's paths."""
    allowed = [event for event in Event if event in OPERATOR_EVENTS and event in TRANSITIONS.get(row.phase, {})]
    if row.phase != SHADOWING and row.step + 1 >= num_steps:
        allowed = [event for event in allowed if event != Event.SKIP]
    return [_SHORT_NAMES.get(event, event.value) for event in allowed]


def approve(
    row: RolloutRow, findings: Findings, rules: Rules, generation: int, digest: str, actor: str, now: float
) -> Transition:
    """Promote, if the operator saw this very decision and the gates hold."""
    find_next_phase(row, Event.APPROVE)
    if generation != row.generation or digest != row.decision_digest:
        raise RefusedAction("The rollout has moved on since you looked: look again, then approve.")
    if not do_gates_hold(findings, rules):
        names = findings.list_blocking(accepts_too_little=rules.approve_early)
        raise RefusedAction(f"These no longer pass: {', '.join(names)}.")
    if is_skewed(row, findings, rules):
        raise RefusedAction("Users are not split as intended.")
    return fire(row, Event.APPROVE, Reason.APPROVED, now, actor=actor)


def promote_past(row: RolloutRow, note: str, actor: str, now: float) -> Transition:
    """Promote whatever the gates say: an admin answers for it, in writing."""
    return fire(row, Event.PROMOTE, Reason.FORCED, now, actor=actor, note=note)


def abort(row: RolloutRow, actor: str, now: float, note: str = "") -> Transition:
    """End it. In Baking this goes back to the old checkpoint; a roll back that is under way is given up."""
    finished_at = now if row.phase == ROLLING_BACK else None
    return fire(row, Event.ABORT, Reason.OPERATOR, now, actor=actor, note=note, finished_at=finished_at)


def roll_back(row: RolloutRow, actor: str, now: float, note: str = "") -> Transition:
    """Let what served before serve again: at once in Baking, from Healthy as soon as it is loaded."""
    return fire(row, Event.ROLL_BACK, Reason.ROLLED_BACK, now, actor=actor, note=note, finished_at=None)


def pause(row: RolloutRow, actor: str, now: float, note: str = "") -> Transition:
    """The weight stays, nothing moves; a breach still ends the rollout."""
    return fire(row, Event.PAUSE, Reason.OPERATOR, now, actor=actor, note=note, resume_phase=row.phase)


def resume(row: RolloutRow, actor: str, now: float) -> Transition:
    """Go on where it was. What it was paused for is accepted for this rollout, a skewed split for instance."""
    waived = row.waived.split()
    if (name := _GUARDRAIL_OF.get(row.reason)) is not None and name not in waived:
        waived.append(name)
    standing, analysis = Reason.RUNNING, "Running"
    if row.resume_phase == WAITING and row.analysis == "Running":
        standing = Reason.UNPROVEN
    elif row.resume_phase == WAITING:
        standing, analysis = Reason.SUPERIOR, "Successful"
    return fire(
        row, Event.RESUME, Reason.RESUMED, now, standing=standing, actor=actor, analysis=analysis,
        waived=" ".join(waived), step_started_at=now,
    )  # fmt: skip


def skip_step(row: RolloutRow, rules: Rules, actor: str, now: float) -> Transition:
    """To the next step of the ramp before its time, or from Shadowing to the first."""
    find_next_phase(row, Event.SKIP)
    if row.phase == SHADOWING:
        return start(row, now, rules, Event.SKIP, Reason.SKIPPED, actor=actor)
    if row.step + 1 >= len(rules.steps):
        raise RefusedAction("This is the last step.")
    return advance_step(row, Event.SKIP, Reason.SKIPPED, now, rules, actor)

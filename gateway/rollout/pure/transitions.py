"""The rollout's phases and the one table of what leads from which to which. Pure.

Theory of operation
===================
A rollout is one row, and its phase is the state of one machine. What happens to it is an Event: what the controller found
(CONTROLLER_EVENTS) or what an operator did (the others). An event that a phase does not list cannot happen there: `fire`
refuses it. So what may happen is read here and nowhere else; docs/rollouts.md draws the table.

The second axis, the analysis (Pending, Running, Successful, Failed, Error, Inconclusive), follows the events: PROVEN makes it
Successful, BREACHED and ABORT Failed, UNWEIGHABLE Error until RECOVERED, SPENT Inconclusive.

Two things the table does not say. PAUSED goes back to the phase it came from (RESUME_TO is read from the row). A canary that
nobody is served by any more makes ABORTING end; in which gateways that is, the controller knows.

When an event is due is decided in machine.py from evidence and clock, or by an operator in operator_moves.py. What a
transition does outside the row (pointer, engines) follows from the new row, so that it can be done again after a crash.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from gateway.errors import RefusedAction
from gateway.tables.rows import RolloutRow

PENDING, PROGRESSING, PAUSED, WAITING = "Pending", "Progressing", "Paused", "WaitingPromotion"
PROMOTING, BAKING, HEALTHY, ABORTING, DEGRADED = "Promoting", "Baking", "Healthy", "Aborting", "Degraded"
ROLLING_BACK = "RollingBack"
SHADOWING = "Shadowing"
ON_TRIAL = (PROGRESSING, PAUSED, WAITING)  # phases in which both arms serve and evidence is gathered
RESUME_TO = "where it was"  # PROGRESSING or WAITING, as the row says


class Event(StrEnum):
    """What happens to a rollout, in the words of the diagram."""

    LOADED = "loaded and proven"
    SHADOW = "loaded, shadowed first"
    SHADOWED = "shadow answers are sound"
    LOAD_FAILED = "cannot be loaded"
    SUPERSEDED = "a newer one waits"
    STEPPED = "a step's time is over"
    STARVED = "no data"
    UNWEIGHABLE = "metric error"
    RECOVERED = "its cause has ended"
    SKEWED = "users split otherwise"
    ALARMED = "a guardrail that pauses"
    PROVEN = "better, guardrails pass"
    ASKED_EARLY = "approve_early and none fails"
    BREACHED = "worse, or a guardrail"
    SPENT = "no verdict in time"
    AUTO_APPROVED = "countdown over"
    SWITCHED = "the pointer moved"
    BAKED = "baking time is over"
    DRAINED = "serves nobody"
    APPROVE = "approve"
    PAUSE = "pause"
    RESUME = "resume"
    SKIP = "skip step"
    PROMOTE = "promote"
    ABORT = "abort"
    ROLL_BACK = "roll back"
    RETRY = "retry"


TRANSITIONS: Mapping[str, Mapping[Event, str]] = {
    PENDING: {
        Event.LOADED: PROGRESSING,
        Event.SHADOW: SHADOWING,
        Event.LOAD_FAILED: ABORTING,
        Event.SUPERSEDED: DEGRADED,
        Event.ABORT: ABORTING,
    },
    SHADOWING: {
        Event.SHADOWED: PROGRESSING,
        Event.SKIP: PROGRESSING,
        Event.BREACHED: ABORTING,
        Event.SPENT: ABORTING,
        Event.LOAD_FAILED: ABORTING,
        Event.ABORT: ABORTING,
    },
    PROGRESSING: {
        Event.STEPPED: PROGRESSING,
        Event.SKIP: PROGRESSING,
        Event.STARVED: PAUSED,
        Event.UNWEIGHABLE: PAUSED,
        Event.SKEWED: PAUSED,
        Event.ALARMED: PAUSED,
        Event.PAUSE: PAUSED,
        Event.PROVEN: WAITING,
        Event.ASKED_EARLY: WAITING,
        Event.PROMOTE: PROMOTING,
        Event.BREACHED: ABORTING,
        Event.SPENT: ABORTING,
        Event.LOAD_FAILED: ABORTING,
        Event.ABORT: ABORTING,
    },
    PAUSED: {
        Event.RECOVERED: RESUME_TO,
        Event.RESUME: RESUME_TO,
        Event.PROMOTE: PROMOTING,
        Event.BREACHED: ABORTING,
        Event.SPENT: ABORTING,
        Event.LOAD_FAILED: ABORTING,
        Event.ABORT: ABORTING,
    },
    WAITING: {
        Event.UNWEIGHABLE: PAUSED,
        Event.SKEWED: PAUSED,
        Event.ALARMED: PAUSED,
        Event.PAUSE: PAUSED,
        Event.APPROVE: PROMOTING,
        Event.AUTO_APPROVED: PROMOTING,
        Event.PROMOTE: PROMOTING,
        Event.BREACHED: ABORTING,
        Event.LOAD_FAILED: ABORTING,
        Event.ABORT: ABORTING,
    },
    PROMOTING: {Event.SWITCHED: BAKING, Event.LOAD_FAILED: ABORTING, Event.ABORT: ABORTING},
    BAKING: {
        Event.BAKED: HEALTHY,
        Event.BREACHED: ABORTING,
        Event.ABORT: ABORTING,
        Event.ROLL_BACK: ABORTING,
    },
    HEALTHY: {Event.ROLL_BACK: ROLLING_BACK},
    ROLLING_BACK: {Event.LOADED: ABORTING, Event.LOAD_FAILED: HEALTHY, Event.ABORT: HEALTHY},
    ABORTING: {Event.DRAINED: DEGRADED},
    DEGRADED: {Event.RETRY: PENDING},  # as a new rollout, which goes on with the evidence of this one
}

OPERATOR_EVENTS = frozenset(
    {Event.APPROVE, Event.PAUSE, Event.RESUME, Event.SKIP, Event.PROMOTE, Event.ABORT, Event.ROLL_BACK, Event.RETRY}
)
CONTROLLER_EVENTS = frozenset(Event) - OPERATOR_EVENTS

_ANALYSIS = {
    Event.LOADED: "Running",
    Event.SHADOW: "Running",
    Event.PROVEN: "Successful",
    Event.BREACHED: "Failed",
    Event.LOAD_FAILED: "Error",
    Event.UNWEIGHABLE: "Error",
    Event.SPENT: "Inconclusive",
    Event.ABORT: "Failed",
}


class Reason(StrEnum):
    """Why a rollout is where it is. What operators write stands beside it, as a note, and steers nothing."""

    CREATED = "Created"
    LOADED = "Loaded"
    SHADOWING = "Shadowing"
    SHADOWED = "Shadowed"
    RUNNING = "Running"
    NEXT_STEP = "NextStep"
    SKIPPED = "StepSkipped"
    NO_DATA = "NoData"
    DATA = "Data"
    METRIC_ERROR = "MetricError"
    METRICS_BACK = "MetricsBack"
    SAMPLE_RATIO_MISMATCH = "SampleRatioMismatch"
    SUPERIOR = "Superior"
    UNPROVEN = "Unproven"
    INFERIOR = "Inferior"
    HARM = "Harm"
    ERRORS = "Errors"
    LATENCY = "Latency"
    TOKEN_LATENCY = "TokenLatency"
    REFUSALS = "Refusals"
    TRUNCATION = "Truncation"
    LENGTH = "Length"
    KL = "KL"
    SLICE = "Slice"
    TRIPWIRE = "Tripwire"
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
    RETRIED = "Retried"
    ROLLED_BACK = "RolledBack"

    @classmethod
    def _missing_(cls, value: object) -> "Reason":
        """Words in the place of a code are an operator's, of an older gateway."""
        return cls.OPERATOR


@dataclass(frozen=True)
class Transition:
    """The row as it should become; reason and note are for the audit trail. decides: write a decision row."""

    row: RolloutRow
    event: Event
    reason: Reason
    actor: str = "controller"
    note: str = ""
    decides: bool = False


def find_next_phase(row: RolloutRow, event: Event) -> str:
    """Where the event leads. Raises RefusedAction if it cannot happen in the row's phase."""
    after = TRANSITIONS.get(row.phase, {}).get(event)
    if after is None:
        able = [phase for phase, events in TRANSITIONS.items() if event in events]
        raise RefusedAction(f'The rollout is {row.phase}: "{event}" is for {" and ".join(able)}.')
    return (row.resume_phase or PROGRESSING) if after == RESUME_TO else after


def fire(
    row: RolloutRow, event: Event, reason: Reason, now: float, *, standing: Reason | None = None,
    actor: str = "controller", note: str = "", kept_note: str | None = None, decides: bool = False, **changes: object,
) -> Transition:  # fmt: skip
    """The transition that an event makes. Raises RefusedAction if it cannot happen in the row's phase.

    standing: why the row is where it is from then on, if it is another reason than the event's; likewise kept_note. changes: of
    the row's other columns.
    """
    phase = find_next_phase(row, event)
    if phase != row.phase:
        changes = {
            "phase_started_at": now,
            "reason": (standing or reason).value,
            "note": note if kept_note is None else kept_note,
            "analysis": _ANALYSIS.get(event, row.analysis),
            **changes,
        }
    moved = replace(row, phase=phase, **changes)  # type: ignore[arg-type]
    return Transition(moved, event, reason, actor, note, decides)

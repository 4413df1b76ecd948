"""What an operator sees of a rollout: the same names in the API, the console and the command line."""

import math
from collections.abc import Sequence

import msgspec

from gateway.rollout.evidence_view import (
    EvidenceView,
    ShadowView,
    SliceView,
    TripwireView,
    show_evidence,
    show_shadow,
    show_slice,
    show_tripwire,
)
from gateway.rollout.pure import machine
from gateway.rollout.pure.decisions import Replay
from gateway.rollout.pure.divergence import KL, Drift
from gateway.rollout.pure.evidence import Point
from gateway.rollout.pure.findings import Findings
from gateway.rollout.pure.guardrails import FAIL, SENSORS, Guardrails
from gateway.rollout.pure.operator_moves import list_actions
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.verdict import limit_exp, say_reason, say_verdict
from gateway.tables.rows import DecisionRow, EventRow, RolloutRow


class GuardrailView(msgspec.Struct, frozen=True, kw_only=True):
    """One guardrail. `status`: "pass", "fail", "not enough data" or "blind"; `missing`: clean users that would make it pass.

    sensor: what looks, and seen: at how many answers. action: what its alarm does, "roll_back", "pause" or "warn". waived: an
    operator has accepted its alarm. needed: whether a promotion waits for it.
    length: canary is the mean difference to stable, as a share of the most tokens; kl: the mean divergence in nats a token, within
    low and high (90%) and to be below margin, all null of others.
    """

    name: str
    status: str
    e: float
    threshold: float
    canary: float | None
    stable: float | None
    missing: int
    sensor: str
    seen: int
    action: str
    waived: bool
    needed: bool
    low: float | None = None
    high: float | None = None
    margin: float | None = None


class SeriesPoint(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence as it stood when `users` had entered, at `at` (epoch seconds)."""

    at: float
    users: int
    net: float
    low: float
    high: float
    e: float
    e_inferior: float


class EventView(msgspec.Struct, frozen=True, kw_only=True, rename={"from_phase": "from", "to_phase": "to"}):
    """One line of the audit trail. reason: a code, reason_text: it in words; note: what an operator wrote."""

    at: float
    from_phase: str
    to_phase: str
    actor: str
    reason: str
    reason_text: str
    note: str


class StepView(msgspec.Struct, frozen=True):
    """A step of the ramp. weight: the canary's share of users; hold_s: null if it lasts until a verdict."""

    weight: float
    hold_s: float | None


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout with its evidence, guardrails, series and audit trail. Times in epoch seconds.

    reason: a code, reason_text: it in words; note: what an operator wrote. actions: what may be done now, by whoever asks, as in
    the API's paths. weight_of: whom `weight` is the share of, "canary" or, while baking, "old".
    problem: why it could not be weighed, empty if it was. shadow: in the phase Shadowing, and null in others.
    """

    id: str
    checkpoint: str
    stable: str
    aa: bool
    phase: str
    analysis: str
    actions: list[str]
    reason: str
    reason_text: str
    note: str
    problem: str
    step: int
    num_steps: int
    steps: list[StepView]
    weight: float
    weight_of: str
    duel_share: float
    num_tries: int
    generation: int
    decision_digest: str
    created_at: float
    finished_at: float | None
    next_move_at: float | None
    approve_at: float | None
    preset: str
    verdict_sentence: str
    evidence: EvidenceView
    guardrails: list[GuardrailView]
    slices: list[SliceView]
    tripwires: list[TripwireView]
    shadow: ShadowView | None
    series: list[SeriesPoint]
    events: list[EventView]


class DecisionView(msgspec.Struct, frozen=True, kw_only=True):
    """A decision, and whether it comes out the same when it is made again. replayed: the digest then, empty if it cannot be.

    is_same: both digests are the same. is_same_code: the files that decide have not changed since.
    """

    at: float
    verdict: str
    digest: str
    replayed: str
    is_same: bool
    is_same_code: bool


class ReplayView(msgspec.Struct, frozen=True):
    """Every decision of a rollout, made again."""

    rollout: str
    decisions: list[DecisionView]


def show_replay(at: float, decision: DecisionRow, replay: Replay) -> DecisionView:
    """A decision beside its replay."""
    return DecisionView(
        at=at, verdict=decision.verdict, digest=decision.digest, replayed=replay.digest,
        is_same=decision.digest == replay.digest, is_same_code=replay.is_same_code,
    )  # fmt: skip


def build_view(
    row: RolloutRow, findings: Findings, series: Sequence[Point], events: Sequence[EventRow], rules: Rules, preset: str,
    problem: str = "",
) -> RolloutView:  # fmt: skip
    """Everything an operator sees of one rollout."""
    return RolloutView(
        id=row.id,
        checkpoint=row.checkpoint,
        stable=row.stable,
        aa=row.aa,
        phase=row.phase,
        analysis=row.analysis,
        actions=list_actions(row, len(rules.steps)),
        reason=row.reason,
        reason_text=say_reason(row.reason),
        note=row.note,
        problem=problem,
        step=row.step,
        num_steps=len(rules.steps),
        steps=[StepView(step.weight, step.hold_s) for step in rules.steps],
        weight=row.weight,
        weight_of="old" if row.phase == machine.BAKING else "canary",
        duel_share=row.duel_share,
        num_tries=row.num_tries,
        generation=row.generation,
        decision_digest=row.decision_digest,
        created_at=row.created_at,
        finished_at=row.finished_at,
        next_move_at=machine.next_move_at(row, rules),
        approve_at=machine.approve_at(row, rules),
        preset=preset,
        verdict_sentence=f"Cannot be judged: {problem}." if problem else say_verdict(row, findings, rules),
        evidence=show_evidence(findings, rules, row),
        guardrails=_show_all_guardrails(findings, rules, row),
        slices=[show_slice(one, rules) for one in findings.slices],
        shadow=show_shadow(findings, rules) if row.phase == machine.SHADOWING else None,
        tripwires=[show_tripwire(one, rules) for one in findings.tripwires],
        series=[
            SeriesPoint(
                at=p.at,
                users=p.users,
                net=p.net,
                low=p.low,
                high=p.high,
                e=limit_exp(p.log_e),
                e_inferior=limit_exp(p.log_e_inferior),
            )
            for p in series
        ],
        events=[_show_event(event) for event in events],
    )


def _show_event(event: EventRow) -> EventView:
    return EventView(
        at=event.at, from_phase=event.from_phase, to_phase=event.to_phase, actor=event.actor, reason=event.reason,
        reason_text=say_reason(event.reason), note=event.note,
    )  # fmt: skip


def _show_all_guardrails(findings: Findings, rules: Rules, row: RolloutRow) -> list[GuardrailView]:
    rows = [_show_drift(one, findings.drift) for one in _show_guardrails(findings.guardrails, rules, row)]
    if findings.late is not None:
        late = _show_guardrails(findings.late.guardrails, rules, row)
        rows += [
            msgspec.structs.replace(one, name=f"{one.name} since the verdict") for one in late if one.status == FAIL
        ]
    return rows


def _show_drift(one: GuardrailView, drift: Drift | None) -> GuardrailView:
    if drift is None or one.name.partition(" ")[0] != KL:
        return one
    return msgspec.structs.replace(one, low=drift.low, high=drift.high, margin=drift.margin)


def _show_guardrails(guardrails: Guardrails, rules: Rules, row: RolloutRow) -> list[GuardrailView]:
    waived = row.waived.split()
    rows = [
        GuardrailView(
            name=rate.name if rate.needed else f"{rate.name} (alarm only)",
            status=rate.status,
            e=limit_exp(rate.log_alarm if rate.status == "fail" else rate.log_e),
            threshold=1 / rules.alpha,
            canary=rate.canary,
            stable=rate.stable,
            missing=rate.missing,
            sensor=SENSORS[rate.name] + (", harm screen" if rate.name == "harm" and rules.harm_screen else ""),
            seen=rate.seen,
            action=rules.actions[rate.name],
            waived=rate.name in waived,
            needed=rate.needed,
        )
        for rate in guardrails.rates
    ]
    limit = rules.sample_ratio_threshold
    for name, log_e in (("sample ratio", guardrails.log_e_split), ("display order", guardrails.log_e_order)):
        status = "fail" if log_e >= math.log(limit) else "pass" if guardrails.users else "not enough data"
        rows.append(
            GuardrailView(
                name=name,
                status=status,
                e=limit_exp(log_e),
                threshold=limit,
                canary=None,
                stable=None,
                missing=0,
                sensor="the arm that really answered" if name == "sample ratio" else "the order shown",
                seen=guardrails.users,
                action=rules.actions["split"],
                waived="split" in waived,
                needed=True,
            )
        )
    return rows

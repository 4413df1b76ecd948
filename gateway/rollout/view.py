"""What an operator sees of a rollout: the same names in the API, the console and the command line."""

import math
from collections.abc import Sequence

import msgspec

from gateway.rollout.pure import machine
from gateway.rollout.pure.evidence import Evidence, Point
from gateway.rollout.pure.guardrails import Guardrail, Guardrails
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.verdict import limit_exp, say_verdict
from gateway.tables.rows import EventRow, RolloutRow


class EvidenceView(msgspec.Struct, frozen=True, kw_only=True):
    """Preference evidence. E-values, not logarithms; `net_win_rate` is the mean of (wins - losses) / cap over users.

    delta: the net win rate that the whole interval must be above. unit: what `users` counts, "user" or "comparison".
    """

    e: float
    threshold: float
    e_inferior: float
    unit: str
    users: int
    min_users: int
    max_users: int
    votes: int
    wins: int
    losses: int
    ties: int
    both_bad: int
    net_win_rate: float
    delta: float
    ci_low: float
    ci_high: float
    top_user_share: float


class GuardrailView(msgspec.Struct, frozen=True, kw_only=True):
    """One guardrail. `status`: "pass", "fail" or "not enough data"; `missing`: clean users that would make it pass."""

    name: str
    status: str
    e: float
    threshold: float
    canary: float | None
    stable: float | None
    missing: int


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
    """One line of the audit trail. reason: a code; note: what an operator wrote."""

    at: float
    from_phase: str
    to_phase: str
    actor: str
    reason: str
    note: str


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout with its evidence, guardrails, series and audit trail. Times in epoch seconds.

    reason: a code; note: what an operator wrote. weight_of: whom `weight` is the share of, "canary" or, while baking, "old".
    problem: why it could not be weighed, empty if it was.
    """

    id: str
    checkpoint: str
    stable: str
    aa: bool
    phase: str
    analysis: str
    reason: str
    note: str
    problem: str
    step: int
    num_steps: int
    weight: float
    weight_of: str
    duel_share: float
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
    series: list[SeriesPoint]
    events: list[EventView]


def build_view(
    row: RolloutRow, evidence: Evidence, guardrails: Guardrails, series: Sequence[Point], events: Sequence[EventRow],
    rules: Rules, preset: str, problem: str = "",
) -> RolloutView:  # fmt: skip
    """Everything an operator sees of one rollout."""
    return RolloutView(
        id=row.id,
        checkpoint=row.checkpoint,
        stable=row.stable,
        aa=row.aa,
        phase=row.phase,
        analysis=row.analysis,
        reason=row.reason,
        note=row.note,
        problem=problem,
        step=row.step,
        num_steps=len(rules.steps),
        weight=row.weight,
        weight_of="old" if row.phase == machine.BAKING else "canary",
        duel_share=row.duel_share,
        generation=row.generation,
        decision_digest=row.decision_digest,
        created_at=row.created_at,
        finished_at=row.finished_at,
        next_move_at=machine.next_move_at(row, rules),
        approve_at=machine.approve_at(row, rules),
        preset=preset,
        verdict_sentence=f"Cannot be judged: {problem}." if problem else say_verdict(row, evidence, guardrails, rules),
        evidence=_show_evidence(evidence, rules),
        guardrails=_show_guardrails(guardrails, rules),
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
        events=[
            EventView(
                at=e.at, from_phase=e.from_phase, to_phase=e.to_phase, actor=e.actor, reason=e.reason, note=e.note
            )
            for e in events
        ],
    )


def _show_evidence(evidence: Evidence, rules: Rules) -> EvidenceView:
    return EvidenceView(
        e=limit_exp(evidence.log_e),
        threshold=1 / rules.alpha,
        e_inferior=limit_exp(evidence.log_e_inferior),
        unit=rules.evidence_unit,
        users=evidence.users,
        min_users=rules.min_users,
        max_users=rules.max_users,
        votes=evidence.votes,
        wins=evidence.wins,
        losses=evidence.losses,
        ties=evidence.ties,
        both_bad=evidence.both_bad,
        net_win_rate=evidence.net,
        delta=rules.delta,
        ci_low=evidence.low,
        ci_high=evidence.high,
        top_user_share=evidence.top_user_share,
    )


def _name_guardrail(rate: Guardrail, rules: Rules) -> str:
    if rate.needed:
        return rate.name
    return f"{rate.name} ({'accepted unseen' if rate.name in rules.accept_blind else 'alarm only'})"


def _show_guardrails(guardrails: Guardrails, rules: Rules) -> list[GuardrailView]:
    rows = [
        GuardrailView(
            name=_name_guardrail(rate, rules),
            status=rate.status,
            e=limit_exp(rate.log_alarm if rate.status == "fail" else rate.log_e),
            threshold=1 / rules.alpha,
            canary=rate.canary,
            stable=rate.stable,
            missing=rate.missing,
        )
        for rate in guardrails.rates
    ]
    limit = rules.sample_ratio_threshold
    for name, log_e in (("sample ratio", guardrails.log_e_split), ("display order", guardrails.log_e_order)):
        status = "fail" if log_e >= math.log(limit) else "pass" if guardrails.users else "not enough data"
        rows.append(
            GuardrailView(
                name=name, status=status, e=limit_exp(log_e), threshold=limit, canary=None, stable=None, missing=0
            )
        )
    return rows

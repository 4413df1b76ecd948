"""Says in words and numbers where a rollout stands, for operators. Pure."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from gateway.rollout.pure import machine
from gateway.rollout.pure.evidence import Evidence
from gateway.rollout.pure.guardrails import Guardrails
from gateway.rollout.view import EventView, EvidenceView, GuardrailView, RolloutView, SeriesPoint
from gateway.settings import RolloutSection
from gateway.tables.rollouts import EventRow, RolloutRow

_LARGEST_LOG = 690.0


def digest_code() -> str:
    """SHA-256 over the files that decide, so that a decision names the code that made it."""
    digest = hashlib.sha256()
    for name in ("users.py", "evidence.py", "guardrails.py", "machine.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def describe_decision(
    row: RolloutRow, verdict: str, evidence: Evidence, guardrails: Guardrails, last_choice_at: float, code: str
) -> tuple[str, str]:
    """Return (digest, JSON) of everything a decision rests on."""
    numbers = asdict(evidence)
    numbers.pop("series")
    data = {
        "rollout": row.id,
        "checkpoint": row.checkpoint,
        "stable": row.stable,
        "verdict": verdict,
        "evidence": numbers,
        "guardrails": asdict(guardrails),
        "last_choice_at": last_choice_at,
        "settings": hashlib.sha256(row.settings.encode()).hexdigest(),
        "code": code,
    }
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest(), text


def build_view(
    row: RolloutRow, evidence: Evidence, guardrails: Guardrails, events: Sequence[EventRow], settings: RolloutSection,
    preset: str,
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
        step=row.step,
        num_steps=len(settings.steps),
        weight=row.weight,
        duel_share=row.duel_share,
        generation=row.generation,
        decision_digest=row.decision_digest,
        created_at=row.created_at,
        finished_at=row.finished_at,
        next_move_at=machine.next_move_at(row, settings),
        approve_at=machine.approve_at(row, settings),
        preset=preset,
        verdict_sentence=say_verdict(row, evidence, guardrails, settings),
        evidence=_show_evidence(evidence, settings),
        guardrails=_show_guardrails(guardrails, settings),
        series=[
            SeriesPoint(
                at=p.at,
                users=p.users,
                net=p.net,
                low=p.low,
                high=p.high,
                e=_exp(p.log_e),
                e_inferior=_exp(p.log_e_inferior),
            )
            for p in evidence.series
        ],
        events=[
            EventView(at=e.at, from_phase=e.from_phase, to_phase=e.to_phase, actor=e.actor, reason=e.reason)
            for e in events
        ],
    )


def say_verdict(row: RolloutRow, evidence: Evidence, guardrails: Guardrails, settings: RolloutSection) -> str:
    """One sentence: what is known and what is awaited."""
    net = f"net win rate {evidence.net:+.0%} ({evidence.low:+.0%} to {evidence.high:+.0%}), {evidence.users} users"
    have = f"evidence {_exp(evidence.log_e):.1f} of {1 / settings.alpha:.0f}"
    if row.phase == machine.PENDING:
        return "The canary is being loaded and has not served anyone."
    if row.phase == machine.PAUSED:
        return f"Paused ({row.reason}): the weight stays at {row.weight:.0%}; {have}."
    if row.phase == machine.WAITING:
        return f"People prefer the canary ({net}) and every guardrail passes: waiting for approval."
    if row.phase in (machine.PROMOTING, machine.BAKING, machine.HEALTHY):
        tail = "" if row.phase == machine.HEALTHY else f"; the old one keeps {settings.baking_weight:.0%} for now"
        return f"Promoted: people preferred it ({net}){tail}."
    if row.phase in (machine.ABORTING, machine.DEGRADED):
        if row.reason == "Inconclusive":
            return f"Inconclusive, so not promoted: {net}, {have}."
        return f"Not promoted ({row.reason}): {net}."
    missing = [rate for rate in guardrails.rates if rate.needed and rate.status != "pass"]
    if evidence.log_e >= -math.log(settings.alpha) and evidence.users >= settings.min_users and missing:
        waits = ", ".join(f"{rate.name} needs {rate.missing} more clean users" for rate in missing)
        return f"People prefer the canary ({net}); {waits}."
    return f"No verdict yet: {net}, {have}."


def _show_evidence(evidence: Evidence, settings: RolloutSection) -> EvidenceView:
    return EvidenceView(
        e=_exp(evidence.log_e),
        threshold=1 / settings.alpha,
        e_inferior=_exp(evidence.log_e_inferior),
        users=evidence.users,
        min_users=settings.min_users,
        max_users=settings.max_users,
        votes=evidence.votes,
        wins=evidence.wins,
        losses=evidence.losses,
        ties=evidence.ties,
        both_bad=evidence.both_bad,
        net_win_rate=evidence.net,
        ci_low=evidence.low,
        ci_high=evidence.high,
        top_user_share=evidence.top_user_share,
    )


def _show_guardrails(guardrails: Guardrails, settings: RolloutSection) -> list[GuardrailView]:
    rows = [
        GuardrailView(
            name=rate.name if rate.needed else f"{rate.name} (alarm only)",
            status=rate.status,
            e=_exp(rate.log_alarm if rate.status == "fail" else rate.log_e),
            threshold=1 / settings.alpha,
            canary=rate.canary,
            stable=rate.stable,
            missing=rate.missing,
        )
        for rate in guardrails.rates
    ]
    limit = settings.sample_ratio_threshold
    for name, log_e in (("sample ratio", guardrails.log_e_split), ("display order", guardrails.log_e_order)):
        status = "fail" if log_e >= math.log(limit) else "pass" if guardrails.users else "not enough data"
        rows.append(
            GuardrailView(name=name, status=status, e=_exp(log_e), threshold=limit, canary=None, stable=None, missing=0)
        )
    return rows


def _exp(log_value: float) -> float:
    """exp, kept finite so that JSON can carry it."""
    return math.exp(min(log_value, _LARGEST_LOG))

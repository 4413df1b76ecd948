"""Says in words and numbers where a rollout stands, for operators. Pure."""

import math

from gateway.rollout.pure import machine
from gateway.rollout.pure.divergence import KL
from gateway.rollout.pure.findings import Findings
from gateway.rollout.pure.guardrails import BLIND, FAIL, Guardrail
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.transitions import Reason
from gateway.rollout.pure.tripwires import say_tripwire
from gateway.tables.rows import RolloutRow

_LARGEST_LOG = 690.0
REASON_WORDS = {
    Reason.CREATED: "a new checkpoint",
    Reason.LOADED: "every engine holds it and has proved its weights",
    Reason.SHADOWING: "it answers for nobody yet",
    Reason.SHADOWED: "its shadow answers are sound",
    Reason.RUNNING: "it is on trial",
    Reason.NEXT_STEP: "the step's time was over",
    Reason.SKIPPED: "an operator skipped a step",
    Reason.NO_DATA: "nobody asked or chose anything",
    Reason.DATA: "there is data again",
    Reason.METRIC_ERROR: "it cannot be weighed",
    Reason.METRICS_BACK: "it can be weighed again",
    Reason.SAMPLE_RATIO_MISMATCH: "users, or places on the page, are not split as intended",
    Reason.SUPERIOR: "people prefer it and every guardrail passes",
    Reason.UNPROVEN: "too little evidence yet",
    Reason.INFERIOR: "people prefer stable",
    Reason.HARM: "more of its answers are reported as harmful",
    Reason.ERRORS: "more of its answers fail",
    Reason.LATENCY: "its first token comes later",
    Reason.TOKEN_LATENCY: "its tokens come more slowly",
    Reason.REFUSALS: "it refuses more often",
    Reason.TRUNCATION: "more of its answers are cut off",
    Reason.LENGTH: "its answers have another length",
    Reason.KL: "its answers are too far from stable's",
    Reason.SLICE: "people prefer it, but not all kinds of them",
    Reason.TRIPWIRE: "people prefer it, but perhaps not for its merit",
    Reason.INCONCLUSIVE: "no verdict in time",
    Reason.LOAD_FAILED: "what is to serve cannot be loaded",
    Reason.SUPERSEDED: "a newer checkpoint took its place",
    Reason.AUTO_APPROVED: "the countdown was over",
    Reason.APPROVED: "an operator approved it",
    Reason.FORCED: "an admin promoted it past the gates",
    Reason.PROMOTED: "it serves everyone else",
    Reason.BAKED: "its baking time was over",
    Reason.OPERATOR: "an operator decided",
    Reason.RESUMED: "an operator resumed it",
    Reason.RETRIED: "an operator tries it again",
    Reason.ROLLED_BACK: "an operator rolled it back",
}


def say_verdict(row: RolloutRow, findings: Findings, rules: Rules) -> str:
    """One sentence: what is known and what is awaited."""
    evidence, guardrails = findings.evidence, findings.guardrails
    units = "comparisons" if rules.evidence_unit == "comparison" else "users"
    net = f"net win rate {evidence.net:+.0%} ({evidence.low:+.0%} to {evidence.high:+.0%}), {evidence.users} {units}"
    is_proven = evidence.log_e >= -math.log(rules.alpha)
    value = f"{limit_exp(evidence.log_e):.1f}" if evidence.log_e < math.log(1000) else "over 1000"
    have = f"evidence {value} of {1 / rules.alpha:.0f}"
    if row.phase == machine.PENDING:
        return "The canary is being loaded and has not served anyone."
    if row.phase == machine.SHADOWING:
        num = f"{guardrails.users} of {rules.shadow.min_answers}"
        failing = ", ".join(rate.name for rate in guardrails.rates if rate.status == FAIL)
        return f"Nobody sees the canary yet: {num} shadow answers were looked at{', failing: ' + failing if failing else ''}."
    why = f"{row.reason}: {row.note}" if row.note else row.reason
    if row.phase == machine.PAUSED:
        return f"Paused ({why}): the weight stays at {row.weight:.0%}; {have}."
    obstacles = _say_obstacles(findings, units)
    if row.phase == machine.WAITING and obstacles:
        return f"Waiting for approval, which is refused while {obstacles}. Of all: {net}."
    if row.phase == machine.WAITING and not is_proven:
        return f"Too little evidence yet: {net}, {have}. An operator may decide all the same."
    if row.phase == machine.WAITING:
        return f"People prefer the canary ({net}) and every guardrail passes: waiting for approval."
    if row.phase in (machine.PROMOTING, machine.BAKING, machine.HEALTHY):
        tail = "" if row.phase == machine.HEALTHY else f"; the old one keeps {rules.baking_weight:.0%} for now"
        if row.reason == machine.Reason.FORCED:
            return f"Promoted past the gates by an admin ({row.note}): {net}, {have}{tail}."
        if not is_proven:
            return f"Promoted by an operator on little evidence: {net}, {have}{tail}."
        return f"Promoted: people preferred it ({net}){tail}."
    if row.phase == machine.ROLLING_BACK:
        return f"Rolling back ({why}): {row.stable} is being loaded, {row.checkpoint} serves until then."
    if row.phase in (machine.ABORTING, machine.DEGRADED):
        if row.reason == machine.Reason.ROLLED_BACK:
            return f"Rolled back{': ' + row.note if row.note else ''}: {row.stable} serves again."
        if row.reason == machine.Reason.INCONCLUSIVE:
            return f"Inconclusive, so not promoted: {net}, {have}{_say_lacks(findings, rules, obstacles, units)}."
        if row.started_at is None and guardrails.users:
            return f"Not promoted ({why}): nobody has seen it, {guardrails.users} shadow answers were looked at."
        return f"Not promoted ({why}): {net}{'; ' + obstacles if obstacles else ''}."
    if is_proven and evidence.users >= rules.min_users and (lacks := _say_lacks(findings, rules, obstacles, units)):
        return f"People prefer the canary ({net}){lacks}."
    return f"No verdict yet: {net}, {have}{f'; not promoted while {obstacles}' if obstacles else ''}."


def _say_lacks(findings: Findings, rules: Rules, obstacles: str, units: str) -> str:
    """What beside evidence a promotion lacks, as the end of a sentence; empty if nothing, or if there is too little evidence."""
    if findings.evidence.log_e < -math.log(rules.alpha):
        return ""
    missing = [rate for rate in findings.guardrails.rates if rate.needed and rate.status != "pass"]
    waits = f"; {', '.join(_say_missing(rate, units) for rate in missing)}" if missing else ""
    return waits + (f"; not promoted while {obstacles}" if obstacles else "")


def _say_obstacles(findings: Findings, units: str) -> str:
    """What forbids a promotion beside guardrails; empty if nothing does."""
    slices = [
        f"{one.label} prefers stable (net win rate {one.net:+.0%}, {one.users} {units})"
        for one in findings.losing_slices
    ]
    return "; ".join([*slices, *map(say_tripwire, findings.tripped)])


def say_reason(code: str) -> str:
    """A reason's code in words; empty where there is none."""
    return REASON_WORDS[Reason(code)] if code else ""


def _say_missing(rate: Guardrail, units: str) -> str:
    if rate.status == FAIL:
        return f"{rate.name} fails"
    if rate.status == BLIND:
        return f"{rate.name} is blind, because its sensor never worked"
    if rate.name == KL:
        return f"{rate.name} needs {rate.missing} more answers near stable's"
    return f"{rate.name} needs {rate.missing} more clean {units}"


def limit_exp(log_value: float) -> float:
    """exp, kept finite so that JSON can carry it."""
    return math.exp(min(log_value, _LARGEST_LOG))

"""A rollout's gates as Prometheus shows them: by name the e-value, its line, the estimate with its interval, and the state. Pure.

superiority promotes; inferiority and the alarms of guardrails (errors_alarm, ...) add up to rollback; guardrails (errors, ...)
must have passed for a promotion, and neither a slice, of which the worst is shown, nor a tripwire (tripwire_length, ...) have failed.
split: of users and of places.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from gateway.rollout.pure.divergence import KL
from gateway.rollout.pure.findings import ROLLBACK_WEIGHTS, Findings, log_rollback
from gateway.rollout.pure.guardrails import ACCEPTED, FAIL, NOT_ENOUGH, PASS, Guardrail
from gateway.rollout.pure.machine import SPLIT
from gateway.rollout.pure.rate_interval import bound_rate
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.transitions import Reason
from gateway.rollout.pure.tripwires import QUIET, REWARD, TRIPPED

_TRIPWIRE = {TRIPPED: FAIL, QUIET: PASS, ACCEPTED: PASS, NOT_ENOUGH: NOT_ENOUGH}
INTERVAL_ALPHA = 0.1  # two-sided, as the net win rate's


@dataclass(frozen=True)
class Gate:
    """Logarithms of the e-value and of the line it must reach; None where the gate has none of it. missing: clean users."""

    name: str
    log_e: float | None = None
    log_threshold: float | None = None
    status: str | None = None
    estimate: float | None = None
    low: float | None = None
    high: float | None = None
    missing: int | None = None
    seen: int | None = None


def list_gates(findings: Findings, rules: Rules) -> Iterator[Gate]:
    """All gates as of these findings."""
    evidence, line = findings.evidence, -math.log(rules.alpha)
    yield Gate(
        "superiority", evidence.log_e, line, PASS if evidence.log_e >= line else NOT_ENOUGH,
        evidence.net, evidence.low, evidence.high, seen=evidence.votes,
    )  # fmt: skip
    alone = math.log(rules.rollback_threshold / ROLLBACK_WEIGHTS[Reason.INFERIOR])  # where it rolls back by itself
    yield Gate("inferiority", findings.log_e_inferior, alone, FAIL if findings.log_e_inferior >= alone else PASS)
    yield Gate("futility", evidence.log_e_futile, line)
    log_e, log_line = log_rollback(findings, rules)[0], math.log(rules.rollback_threshold)
    yield Gate("rollback", log_e, log_line, FAIL if log_e >= log_line else PASS)
    drift = None if findings.drift is None else (findings.drift.low, findings.drift.high)
    late = () if findings.late is None else findings.late.guardrails.rates
    failed_late = {rate.name for rate in late if rate.status == FAIL}
    for rate in findings.guardrails.rates:
        interval = drift if rate.name == KL else _bound(rate)
        yield _show_guardrail(rate, FAIL if rate.name in failed_late else rate.status, line, interval)
        yield Gate(f"{rate.name}_alarm", findings.log_alarm(rate.name), line)
    if findings.slices:  # one that may lose is the worst only of such alone
        judged = [one for one in findings.slices if one.status != ACCEPTED] or findings.slices
        worst = max(one.log_e_inferior for one in judged)
        status = FAIL if findings.losing_slices else PASS
        yield Gate("slices", worst, math.log(rules.slice_threshold), status)
    for one in findings.tripwires:  # reward's is no test: it has no e-value of its own
        is_test = one.name != REWARD
        yield Gate(
            f"tripwire_{one.name}", one.log_e if is_test else None, line if is_test else None, _TRIPWIRE[one.status],
            one.difference, seen=one.users,
        )  # fmt: skip
    log_limit = math.log(rules.sample_ratio_threshold)
    is_skewed, has_users = findings.log_e_split >= log_limit, findings.guardrails.users > 0
    yield Gate(SPLIT, None, log_limit, FAIL if is_skewed else PASS if has_users else NOT_ENOUGH)


def _bound(rate: Guardrail) -> tuple[float, float] | None:
    if rate.canary is None or not rate.num_canary:
        return None
    return bound_rate(rate.num_canary, round(rate.canary * rate.num_canary), INTERVAL_ALPHA)


def _show_guardrail(
    rate: Guardrail, status: str, line: float, interval: tuple[float | None, float | None] | None
) -> Gate:
    """Without an e-value of its own where no promotion waits for it: then only its alarm counts."""
    low, high = interval or (None, None)
    return Gate(
        rate.name, rate.log_e if rate.needed else None, line if rate.needed else None, status, rate.canary, low, high,
        rate.missing, rate.seen,
    )  # fmt: skip

"""What Prometheus reads of checkpoints and the rollout that is on, from what is known when it asks.

Every gateway shows the row as it last read it, and what it has done itself; evidence and gates only the leader, which weighs
them. With no rollout on, the series of the rollout are absent. A checkpoint or a rollout is a label of `_info` alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.rollout.desired_state import read_rules
from gateway.rollout.pure import machine
from gateway.rollout.pure.guardrails import BLIND, FAIL, NOT_ENOUGH, PASS
from gateway.telemetry.gates import Gate, list_gates

if TYPE_CHECKING:
    from gateway.engines.deployment import Deployment
    from gateway.rollout.assessment import CurrentRollout
    from gateway.rollout.controller import Controller
    from gateway.rollout.moves import MoveCounts
    from gateway.rollout.pure.findings import Findings

PHASES = (
    machine.PENDING, machine.SHADOWING, machine.PROGRESSING, machine.PAUSED, machine.WAITING, machine.PROMOTING, machine.BAKING,
    machine.ABORTING, machine.ROLLING_BACK,
)  # fmt: skip
STATUSES = (PASS, FAIL, NOT_ENOUGH, BLIND)
_WEIGHED = (machine.SHADOWING, *machine.ON_TRIAL, machine.BAKING)  # the phases in which the leader looks at evidence
_Values = Mapping[tuple[str, ...], float]
_NUMBERS = {
    "phase_age_seconds": "Time since the rollout's phase began.",
    "step": "The step of the canary's ramp, from 0.",
    "weight_ratio": "Share of users served by the canary; while baking, by the old checkpoint.",
    "duel_share_ratio": "Share of users who may duel, whatever the weight.",
}
_OF_GATES = {
    "log_e_value": ("Natural logarithm of the gate's e-value.", "log_e"),
    "log_threshold": ("What the logarithm must reach.", "log_threshold"),
    "estimate": ("The canary's net win rate, or its rate of what the guardrail sees.", "estimate"),
    "ci_lower": ("Lower end of the estimate's 90% interval.", "low"),
    "ci_upper": ("Upper end of the estimate's 90% interval.", "high"),
    "missing_users": ("Clean users of the canary until the guardrail passes.", "missing"),
}


class RolloutCollector(Collector):
    """Register it on `Metrics.registry`. `clock` in epoch seconds."""

    def __init__(self, deployment: Deployment, controller: Controller, clock: Callable[[], float] = time.time) -> None:
        self._deployment, self._controller, self._clock = deployment, controller, clock

    def collect(self) -> Iterator[Metric]:
        """The metrics as of now."""
        view = self._deployment.view
        info = GaugeMetricFamily("prefloop_checkpoint_info", "1 for what serves.", labels=["arm", "checkpoint"])
        for arm, checkpoint in (("stable", view.stable), ("canary", view.canary)):
            if checkpoint is not None:
                info.add_metric([arm, checkpoint], 1)
        yield info
        yield CounterMetricFamily(
            "prefloop_controller_failures", "Ticks of the rollout controller that failed.",
            value=self._controller.num_failures,
        )  # fmt: skip
        yield from _show_moves(self._controller.moves)
        current = self._controller.current
        yield from self._show_row(current)
        assessment = current.assessment if current is not None else None
        findings = assessment.findings if assessment is not None else None
        gates = () if findings is None or current is None else tuple(list_gates(findings, read_rules(current.row)))
        yield from _show_gates(gates)
        yield from _show_findings(findings)

    def _show_row(self, current: CurrentRollout | None) -> Iterator[GaugeMetricFamily]:
        row = current.row if current is not None else None
        labels = ["rollout", "checkpoint", "stable", "analysis", "reason"]
        info = GaugeMetricFamily("prefloop_rollout_info", "1 for the rollout that is on.", labels=labels)
        phase = GaugeMetricFamily("prefloop_rollout_phase", "1 for the phase the rollout is in.", labels=["phase"])
        known: dict[str, float] = {}
        if row is not None:
            info.add_metric([row.id, row.checkpoint, row.stable, row.analysis, row.reason], 1)
            for name in PHASES:
                phase.add_metric([name], row.phase == name)
            age_s = max(0.0, self._clock() - row.phase_started_at)
            known = {"phase_age_seconds": age_s, "step": row.step}
            known |= {"weight_ratio": row.weight, "duel_share_ratio": row.duel_share}
        yield from (info, phase)
        for name, text in _NUMBERS.items():
            yield _family(f"rollout_{name}", text, {(): known[name]} if name in known else {})
        age: _Values = {}
        if current is not None and (seconds := self._measure_evaluation_age_s(current)) is not None:
            age = {(): seconds}
        yield _family(
            "rollout_evaluation_age_seconds", "Time since this gateway, which leads, weighed the rollout.", age
        )

    def _measure_evaluation_age_s(self, current: CurrentRollout) -> float | None:
        """Since the phase began, where it was never weighed; None where this gateway is not to weigh it."""
        row, found = current.row, current.assessment
        if row.phase not in _WEIGHED or self._controller.membership.fence is None:
            return None
        last = row.phase_started_at if found is None else max(row.phase_started_at, found.inputs.now)
        return max(0.0, self._clock() - last)


def _show_moves(moves: MoveCounts) -> Iterator[CounterMetricFamily]:
    by_move = CounterMetricFamily(
        "prefloop_rollout_transitions", "Transitions that this gateway has carried out.", labels=["from", "to", "actor"]
    )
    by_gate = CounterMetricFamily(
        "prefloop_gate_failures", "Canaries that a gate has stopped or paused.", labels=["gate"]
    )
    for move, num in moves.by_move.copy().items():
        by_move.add_metric(list(move), num)
    for gate, num in moves.by_gate.copy().items():
        by_gate.add_metric([gate], num)
    yield from (by_move, by_gate)


def _show_gates(gates: Sequence[Gate]) -> Iterator[Metric]:
    for name, (text, field) in _OF_GATES.items():
        found: _Values = {(gate.name,): value for gate in gates if (value := getattr(gate, field)) is not None}
        yield _family(f"gate_{name}", text, found, "gate")
    states: _Values = {
        (g.name, status): g.status == status for g in gates if g.status is not None for status in STATUSES
    }
    yield _family("gate_status", "1 for the state the gate is in.", states, "gate", "status")
    seen = CounterMetricFamily(
        "prefloop_sensor_seen", "Answers of the rollout of which the gate's sensor saw anything.", labels=["gate"]
    )
    for gate in gates:
        if gate.seen is not None:
            seen.add_metric([gate.name], gate.seen)
    yield seen


def _show_findings(findings: Findings | None) -> Iterator[GaugeMetricFamily]:
    """What the evidence rests on."""
    numbers: dict[str, float] = {}
    skews: _Values = {}
    if findings is not None:
        evidence, guardrails = findings.evidence, findings.guardrails
        numbers = {"users": evidence.users, "waiting": evidence.waiting, "top": evidence.top_user_share}
        numbers["fragility"] = findings.fragility
        late = () if findings.late is None else (findings.late.guardrails,)
        skews = {
            ("split",): max(one.log_e_split for one in (guardrails, *late)),
            ("order",): max(one.log_e_order for one in (guardrails, *late)),
        }
    for name, key, text in (
        ("duel_users", "users", "Users who have entered the evidence."),
        ("duel_waiting_users", "waiting", "Users who were asked and have not entered."),
        ("duel_top_user_ratio", "top", "Share of the decided duels that the busiest user has."),
        ("rollout_fragility_users", "fragility", "Users who would have to vanish until the evidence is short."),
    ):
        yield _family(name, text, {(): numbers[key]} if numbers else {})
    text = "Natural logarithm of the e-value that users, or places on the page, were not split as intended."
    yield _family("srm_log_e_value", text, skews, "check")


def _family(name: str, text: str, values: _Values, *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"prefloop_{name}", text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value if math.isfinite(value) else math.copysign(1e300, value))
    return family

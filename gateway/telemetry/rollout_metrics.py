"""What Prometheus reads of checkpoints and the rollout that is on, from what is known when it asks.

Every gateway shows the row as it last read it; evidence, duels and guardrails only the leader, which weighs them. With no
rollout on, the series of the rollout are absent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.rollout.pure import machine
from gateway.rollout.pure.guardrails import BLIND, FAIL, NOT_ENOUGH, PASS

if TYPE_CHECKING:
    from gateway.engines.deployment import Deployment
    from gateway.rollout.assessment import CurrentRollout
    from gateway.rollout.controller import Controller
    from gateway.rollout.pure.evidence import Evidence
    from gateway.rollout.pure.guardrails import Guardrails

PHASES = (
    machine.PENDING, machine.PROGRESSING, machine.PAUSED, machine.WAITING, machine.PROMOTING, machine.BAKING,
    machine.ABORTING, machine.ROLLING_BACK,
)  # fmt: skip
STATUSES = (PASS, FAIL, NOT_ENOUGH, BLIND)
_NUMBERS = {
    "phase_age_seconds": "Time since the rollout's phase began.",
    "step": "The step of the canary's ramp, from 0.",
    "canary_weight": "Share of users served by the canary; while baking, by the old checkpoint.",
    "duel_share": "Share of users who may duel, whatever the weight.",
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
        current = self._controller.current
        yield from self._show_row(current)
        assessment = current.assessment if current is not None else None
        findings = assessment.findings if assessment is not None else None
        yield from _show_evidence(findings.evidence if findings is not None else None)
        yield from _show_guardrails(findings.guardrails if findings is not None else None)
        fragility: Mapping[tuple[str, ...], float] = {} if findings is None else {(): findings.fragility}
        yield _family("fragility_users", "Users who would have to vanish until the evidence is short.", fragility)

    def _show_row(self, current: CurrentRollout | None) -> Iterator[GaugeMetricFamily]:
        row = current.row if current is not None else None
        phase = GaugeMetricFamily("prefloop_rollout_phase", "1 for the phase the rollout is in.", labels=["phase"])
        known: dict[str, float] = {}
        if row is not None:
            for name in PHASES:
                phase.add_metric([name], row.phase == name)
            age_s = max(0.0, self._clock() - row.phase_started_at)
            known = {"phase_age_seconds": age_s, "step": row.step}
            known |= {"canary_weight": row.weight, "duel_share": row.duel_share}
        yield phase
        for name, text in _NUMBERS.items():
            yield _family(name, text, {(): known[name]} if name in known else {})


def _show_evidence(evidence: Evidence | None) -> Iterator[GaugeMetricFamily]:
    logs: Mapping[tuple[str, ...], float] = {}
    users: Mapping[tuple[str, ...], float] = {}
    duels: Mapping[tuple[str, ...], float] = {}
    net: Mapping[tuple[str, ...], float] = {}
    if evidence is not None:
        logs = {
            ("superior",): evidence.log_e, ("inferior",): evidence.log_e_inferior, ("futile",): evidence.log_e_futile,
        }  # fmt: skip
        users = {("entered",): evidence.users, ("waiting",): evidence.waiting}
        duels = {
            ("win",): evidence.wins, ("loss",): evidence.losses, ("tie",): evidence.ties, ("both_bad",): evidence.both_bad,
        }  # fmt: skip
        net = {("estimate",): evidence.net, ("low",): evidence.low, ("high",): evidence.high}
    text = "Natural logarithm of the e-value for a hypothesis; superior promotes at -ln(alpha)."
    yield _family("evidence_log_e", text, logs, "hypothesis")
    yield _family("users", "Users of the evidence: entered, or waited for.", users, "state")
    yield _family("duels", "Decided duels, from the canary's side.", duels, "outcome")
    yield _family("net_win_rate", "The canary's wins less losses, and its interval.", net, "bound")


def _show_guardrails(guardrails: Guardrails | None) -> Iterator[GaugeMetricFamily]:
    states: dict[tuple[str, ...], float] = {}
    missing: dict[tuple[str, ...], float] = {}
    skews: dict[tuple[str, ...], float] = {}
    seen: dict[tuple[str, ...], float] = {}
    if guardrails is not None:
        for rate in guardrails.rates:
            states |= {(rate.name, status): rate.status == status for status in STATUSES}
            missing[rate.name,] = rate.missing
            seen[rate.name,] = rate.seen
        skews = {("split",): guardrails.log_e_split, ("order",): guardrails.log_e_order}
    yield _family("guardrail", "1 for the state the guardrail is in.", states, "name", "status")
    yield _family("guardrail_missing_users", "Clean users of the canary until it passes.", missing, "name")
    yield _family("sensor_seen", "Answers of the rollout of which the guardrail's sensor saw anything.", seen, "name")
    text = "Natural logarithm of the e-value that users, or places on the page, were not split as intended."
    yield _family("skew_log_e", text, skews, "check")


def _family(name: str, text: str, values: Mapping[tuple[str, ...], float], *labels: str) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"prefloop_rollout_{name}", text, labels=list(labels))
    for key, value in values.items():
        family.add_metric(list(key), value if math.isfinite(value) else math.copysign(1e300, value))
    return family

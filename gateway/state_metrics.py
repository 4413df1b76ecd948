"""What Prometheus reads of engines and gateways: taken from what is known when it asks, so that serving pays nothing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from gateway.engines import BREAKER_PHASES

if TYPE_CHECKING:
    from gateway.deployment import Deployment
    from gateway.fleet import Fleet


class StateCollector(Collector):
    """Engines by host and port, and this gateway's place among the others. Register it on `Metrics.registry`."""

    def __init__(self, deployment: Deployment, fleet: Fleet) -> None:
        self._deployment, self._fleet = deployment, fleet

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The metrics as of now."""
        up = GaugeMetricFamily("prefloop_engine_up", "Whether the engine answered the last look.", labels=["engine"])
        hung = GaugeMetricFamily("prefloop_engine_hung", "Whether the engine is out for a hang.", labels=["engine"])
        breaker = GaugeMetricFamily(
            "prefloop_engine_breaker", "1 for the phase the engine's breaker is in.", labels=["engine", "phase"]
        )
        in_flight = GaugeMetricFamily(
            "prefloop_engine_requests_in_flight", "Requests sent to the engine and not ended.", labels=["engine"]
        )
        for state in self._deployment.engines.values():
            up.add_metric([state.address], state.up)
            hung.add_metric([state.address], state.is_hung)
            in_flight.add_metric([state.address], state.num_in_flight)
            for phase in BREAKER_PHASES:
                breaker.add_metric([state.address, phase], state.breaker.phase == phase)
        yield from (up, hung, breaker, in_flight)
        yield GaugeMetricFamily(
            "prefloop_rollout_generation",
            "The generation of the view that this gateway serves by.",
            value=self._deployment.view.generation,
        )
        yield GaugeMetricFamily(
            "prefloop_controller_leads",
            "Whether this gateway runs the rollouts.",
            value=self._fleet.fence is not None,
        )

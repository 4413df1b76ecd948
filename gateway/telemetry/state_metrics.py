"""What Prometheus reads of engines, gateways and the relay: taken from what is known when it asks, so that serving pays nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.engines.discovery import OUTCOMES
from gateway.engines.engine import BREAKER_PHASES

if TYPE_CHECKING:
    from feedback.relay import RelayState
    from gateway.engines.deployment import Deployment
    from gateway.engines.discovery import Discovery
    from gateway.rollout.membership import Membership


class StateCollector(Collector):
    """Engines by host and port, this gateway's place among the others, what waits for the log.

    Register it on `Metrics.registry`.
    """

    def __init__(
        self,
        deployment: Deployment,
        membership: Membership,
        discovery: Discovery,
        read_relay: Callable[[], RelayState],
    ) -> None:
        self._deployment, self._membership, self._read_relay = deployment, membership, read_relay
        self._discovery = discovery

    def collect(self) -> Iterator[Metric]:
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
        yield from self._collect_sources()
        yield GaugeMetricFamily(
            "prefloop_rollout_generation",
            "The generation of the view that this gateway serves by.",
            value=self._deployment.view.generation,
        )
        yield GaugeMetricFamily(
            "prefloop_controller_leads",
            "Whether this gateway runs the rollouts.",
            value=self._membership.fence is not None,
        )
        yield from self._collect_relay()

    def _collect_sources(self) -> Iterator[Metric]:
        engines = GaugeMetricFamily(
            "prefloop_engines",
            "Engines that may be asked, by who named them: settings, registered, or a name that is looked up.",
            labels=["source"],
        )
        num_by_source = Counter(dict.fromkeys(self._discovery.sources, 0))
        num_by_source.update(state.source for state in self._deployment.states)
        for source, number in num_by_source.items():
            engines.add_metric([source], number)
        lookups = CounterMetricFamily(
            "prefloop_engine_lookups",
            "Lookups of names for engines: `empty` and `failed` change nothing.",
            labels=["source", "outcome"],
        )
        for source in self._discovery.sources:
            for outcome in OUTCOMES:
                lookups.add_metric([source, outcome], self._discovery.num_lookups[source, outcome])
        yield from (engines, lookups)

    def _collect_relay(self) -> Iterator[Metric]:
        state = self._read_relay()
        if state.backlog is not None:
            yield GaugeMetricFamily(
                "prefloop_outbox_pending", "Choices and signals that wait for the log.", value=state.backlog.num_rows
            )
            yield GaugeMetricFamily(
                "prefloop_outbox_oldest_age_seconds", "How long the oldest of them has waited.",
                value=state.backlog.oldest_age_s,
            )  # fmt: skip
        yield CounterMetricFamily("prefloop_relay_moved", "Records moved to the log.", value=state.num_moved)
        yield CounterMetricFamily("prefloop_relay_failures", "Failed attempts to move some.", value=state.num_failures)

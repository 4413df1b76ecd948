"""What a host tells Prometheus: what it does now, and what its process uses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector

from prefloop.hosting.pod import PodView

STATES = ("free", "fetching", "starting", "serving")


class HostMetrics:
    """In a registry of their own; read from the view when they are asked for."""

    def __init__(self, read_view: Callable[[], PodView]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        state = Gauge("prefloop_engine_host_state", "1 for what the host does now.", ["state"], registry=self.registry)
        for name in STATES:
            state.labels(name).set_function(partial(_claim, read_view, name))


def _claim(read_view: Callable[[], PodView], state: str) -> float:
    return float(read_view().state == state)

"""The sidecar's Prometheus metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector


class SyncMetrics:
    """In a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.expected = Gauge(
            "prefloop_sync_expected_checkpoints", "Checkpoints that should be here.", registry=self.registry
        )
        self.present = Gauge(
            "prefloop_sync_checkpoints", "Checkpoints that are here, whole and verified.", registry=self.registry
        )
        self.refused = Gauge(
            "prefloop_sync_refused_checkpoints",
            "Checkpoints that should be here and are refused: altered, incomplete or not signed.",
            registry=self.registry,
        )
        self.refusals = Counter(
            "prefloop_sync_refusals", "Fetches that ended in a refusal, repeated ones too.", registry=self.registry
        )
        self.fetches = Counter("prefloop_sync_fetches", "Checkpoints fetched.", registry=self.registry)
        self.fetched_bytes = Counter("prefloop_sync_fetched_bytes", "Bytes fetched.", registry=self.registry)
        self.fetch_seconds = Histogram(
            "prefloop_sync_fetch_seconds",
            "How long the fetch of a checkpoint took.",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000),
            registry=self.registry,
        )
        self.removals = Counter("prefloop_sync_removals", "Checkpoints removed here.", registry=self.registry)
        self.errors = Counter(
            "prefloop_sync_errors", "Looks that failed, by what did not answer.", ["of"], registry=self.registry
        )
        for of in ("gateway", "store", "disk"):
            self.errors.labels(of)
        self.last_success = Gauge(
            "prefloop_sync_last_success_timestamp_seconds", "When a look last went well.", registry=self.registry
        )

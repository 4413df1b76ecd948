"""What the trainer counts: Prometheus metrics for machines, TensorBoard curves for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector


class Metrics:
    """The trainer's Prometheus metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.preferences = Gauge("prefloop_preferences", "Preferences stored.", registry=self.registry)
        self.lag = Gauge("prefloop_consumer_lag", "Records in the log that are not consumed.", registry=self.registry)
        self.partition_lag = Gauge(
            "prefloop_consumer_partition_lag",
            "Records of a partition that are not consumed.",
            ["partition"],
            registry=self.registry,
        )
        self.owned_partitions = Gauge(
            "prefloop_consumer_partitions", "Partitions that this consumer owns in its group.", registry=self.registry
        )
        self.seeks = Counter(
            "prefloop_consumer_seeks", "Batches dropped because the inbox stood elsewhere.", registry=self.registry
        )
        self.consumed = Counter("prefloop_consumed", "New preferences consumed.", registry=self.registry)
        self.consumer_errors = Counter("prefloop_consumer_errors", "Failures of the consumer.", registry=self.registry)
        self.lost_records = Counter(
            "prefloop_lost_records", "Records that retention took before they were read.", registry=self.registry
        )
        self.dead_letters = Gauge("prefloop_dead_letters", "Records that could not be read.", registry=self.registry)
        self.quarantined = Gauge(
            "prefloop_quarantined_preferences", "Preferences that learning could not use.", registry=self.registry
        )
        self.learner_errors = Counter("prefloop_learner_errors", "Failures of the learner.", registry=self.registry)
        self.reward_version = Gauge("prefloop_reward_version", "Version of the reward model.", registry=self.registry)
        self.reward_accuracy = Gauge(
            "prefloop_reward_accuracy", "Accuracy on held-out decisive preferences.", registry=self.registry
        )
        self.rounds = Counter("prefloop_rounds", "Finished rounds.", ["outcome"], registry=self.registry)
        self.round_progress = Gauge("prefloop_round_progress", "Progress of the round, 0 to 1.", registry=self.registry)
        self.checkpoints = Gauge("prefloop_checkpoints", "Published checkpoints.", registry=self.registry)


class Curves:
    """TensorBoard curves. Opened at the first value: importing the writer takes a second."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: Any = None

    def add(self, prefix: str, values: Mapping[str, object], step: int) -> None:
        """Add one point to each curve; values that are not numbers are left out."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), flush_secs=10)
        for name, value in values.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

"""What the trainer counts: Prometheus metrics for machines, curves for people (TensorBoard, Weights & Biases)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

log = logging.getLogger("trainer.run.status.metrics")


class Metrics:
    """The trainer's Prometheus metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.leads = Gauge(
            "prefloop_trainer_leads", "1 while this trainer works, 0 while it stands by.", registry=self.registry
        )
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
        self.drift = Gauge(
            "prefloop_drifted_figures",
            "Figures of the stable checkpoint that are clearly other in traffic than when it was judged.",
            registry=self.registry,
        )
        self.drift_unread = Gauge(
            "prefloop_drift_unread_choices",
            "Newest choices that drift is measured without, since they cannot be read: a prompt with an image, say.",
            registry=self.registry,
        )
        self.rounds = Counter("prefloop_rounds", "Finished rounds.", ["outcome"], registry=self.registry)
        self.round_progress = Gauge("prefloop_round_progress", "Progress of the round, 0 to 1.", registry=self.registry)
        self.sample_cap = Gauge(
            "prefloop_samples_in_flight_cap", "Most answers sampled at a time beside people's.", registry=self.registry
        )
        self.slowdown = Gauge(
            "prefloop_sampling_slowdown",
            "How many times as long as without samples people waited for the first token, last seen.",
            registry=self.registry,
        )
        self.checkpoints = Gauge("prefloop_checkpoints", "Published checkpoints.", registry=self.registry)
        self.uploads = Counter(
            "prefloop_checkpoint_uploads", "Checkpoints uploaded to the store.", registry=self.registry
        )
        self.upload_seconds = Histogram(
            "prefloop_checkpoint_upload_seconds",
            "How long the upload of a checkpoint took.",
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000),
            registry=self.registry,
        )
        self.collected_blobs = Counter(
            "prefloop_store_collected_files", "Files of the store that nothing named and that were removed.",
            registry=self.registry,
        )  # fmt: skip


class Curves:
    """TensorBoard curves, and Weights & Biases' if a project is named and `wandb` is installed.

    Opened at the first value: importing the writers takes a second. What Weights & Biases fails at is logged once and
    stops nothing.
    """

    def __init__(self, directory: Path, wandb_project: str = "") -> None:
        self._directory, self._project = directory, wandb_project
        self._writer: Any = None
        self._run: Any = None

    def add(self, prefix: str, values: Mapping[str, object], step: int) -> None:
        """Add one point to each curve; values that are not numbers are left out."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), flush_secs=10)
            self._run = self._open_wandb()
        numbers = {
            f"{prefix}/{name}": value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)
        if self._run is not None and numbers:
            try:
                self._run.log({**numbers, f"{prefix}/step": step})
            except Exception as error:  # somebody else's service
                log.warning("Weights & Biases takes no more: %s", error)
                self._run = None

    def _open_wandb(self) -> Any:
        if not self._project:
            return None
        try:
            wandb: Any = importlib.import_module("wandb")
            return wandb.init(project=self._project, dir=str(self._directory))
        except Exception as error:  # not installed, not logged in, not reachable
            log.warning("no curves for Weights & Biases: %s", error)
            return None

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
        if self._run is not None:
            self._run.finish()

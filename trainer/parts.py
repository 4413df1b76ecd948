"""Builds the trainer's parts and hands them to each other, for a trainer that stays (main.py) and for one round (once.py).

In two steps: what needs no base, so that intake begins at once; then the base, and all that learns. Nothing here writes before the
lease is held.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from feedback import inbox
from feedback.checkpoint_store import CheckpointStore
from feedback.database import Writer, open_database, sqlite_path
from feedback.relay import Relay
from feedback.secret_files import ADMIN_KEY, locate_secret
from feedback.signing import SigningKey, TrustedKeys, read_signing_key, read_trusted_keys
from trainer.learn.sampling.pacing import Pace
from trainer.process import is_base_ready
from trainer.run.intake.consumer import Consumer
from trainer.run.intake.quarantine import Quarantine
from trainer.run.learner import Learner
from trainer.run.lease import Holding, Lease, name_place
from trainer.run.publish.checkpoints import digest_base
from trainer.run.publish.lineage import list_needed
from trainer.run.publish.publisher import Publisher
from trainer.run.publish.registry import Gateway, Registrar
from trainer.run.publish.stored import StoredCopies, wait_for_published
from trainer.run.report.reporter import show_inbox
from trainer.run.reward.keeper import RewardKeeper
from trainer.run.state_lock import StateLock
from trainer.run.status.board import Board, LeaseView, RewardView, RoundView, SamplingView
from trainer.run.status.metrics import Curves, Metrics
from trainer.run.status.requests import RoundRequests
from trainer.settings import TrainerSettings

if TYPE_CHECKING:
    from trainer.model.backbone import Backbone

log = logging.getLogger("trainer")

SHOW_EVERY_S = 0.5
TEMPORARY = os.EX_TEMPFAIL  # the exit status of a trainer that may not work now, and might later


@dataclass(frozen=True)
class Shown:
    """What a trainer that works says to those that stand by."""

    round: RoundView
    reward: RewardView
    sampling: SamplingView
    lag: int | None
    checkpoint: str | None


@dataclass
class Parts:
    """What the process consists of before its base is loaded. `stopping`: it is to end, and loses no lease any more."""

    settings: TrainerSettings
    database: sa.Engine
    stopping: threading.Event
    store: CheckpointStore | None = None
    signing_key: SigningKey | None = None
    trusted_keys: TrustedKeys | None = None
    board: Board = field(default_factory=Board)
    metrics: Metrics = field(default_factory=Metrics)
    requests: RoundRequests = field(default_factory=RoundRequests)

    def __post_init__(self) -> None:
        self.curves = Curves(self.settings.tensorboard_dir, self.settings.trainer.wandb_project)
        self.lock = StateLock(list_lock_files(self.settings))
        self.lease = Lease(
            self.database,
            self.settings.trainer.lease_s,
            may_try=self.lock.try_lock,
            view=self.describe_work,
            on_standby=self.show_standby,
            on_lost=self.end_without_lease,
            place=name_place(self.settings.state_dir),
        )
        self.writer = Writer(self.database, guard=self.lease.guard)
        self.intake = Intake(self)

    @property
    def shares_database(self) -> bool:
        """Whether other trainers may stand by."""
        return self.database.dialect.name != "sqlite"

    def describe_work(self) -> str:
        """What this trainer does, as JSON, for those that stand by."""
        view = self.board.read()
        shown = Shown(view.round, view.reward, view.sampling, view.lag, view.checkpoint)
        return msgspec.json.encode(shown).decode()

    def show_standby(self, holding: Holding | None) -> None:
        """Show what the trainer does that works, as far as it says so."""
        waits_for = "its turn" if self.lock.try_lock() else self.lock.name_owner()
        holder, since = (holding.holder, holding.taken_at) if holding else ("", None)
        self.board.update(lease=LeaseView("standby", holder, since, waits_for))
        if holding and holding.view:
            shown = msgspec.json.decode(holding.view, type=Shown, strict=False)
            self.board.update(**{name: getattr(shown, name) for name in Shown.__dataclass_fields__})
        show_inbox(self.database, self.board, self.metrics, self.settings.trainer)

    def show_leading(self) -> None:
        """Show that this trainer works from now on. Harmless to repeat."""
        if self.board.read().lease.state == "leading":
            return
        self.board.update(lease=LeaseView("leading", self.lease.holder, time.time()), round=RoundView())
        self.metrics.leads.set(1)

    def end_without_lease(self, reason: str) -> None:
        """Another trainer works: what this process knows is out of date, and it ends, to stand by when it is started again."""
        if self.stopping.is_set():
            return  # it ends already, and gave the lease back
        log.error("the lease is lost, and the process ends: %s", reason)
        os._exit(TEMPORARY)

    def show_pace(self, pace: Pace) -> None:
        """How many answers are sampled at a time, and why."""
        self.metrics.sample_cap.set(pace.cap)
        if pace.slowdown is not None:
            self.metrics.slowdown.set(pace.slowdown)
        self.board.update(sampling=SamplingView(pace.cap, pace.reason, pace.slowdown, pace.is_blind))


class Intake:
    """The consumer of the log, and the relay of dead letters. `start` once the lease is held."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._relay: Relay | None = None
        self._consumer: Consumer | None = None

    def start(self, *, follows: bool = True) -> None:
        """follows: go on reading the log until `stop`. Harmless to repeat."""
        if self._relay is not None:
            return
        parts, settings = self._parts, self._parts.settings
        self._log = settings.open_log()
        self._relay = Relay(
            parts.database,
            parts.writer,
            self._log,
            settings.dead_letter_topic,
            outbox=inbox.dead_letter_outbox,
            poll_s=1.0,
        )
        self._relay.start()
        if follows:
            self._consumer = Consumer(
                settings.open_log,
                settings.topic,
                parts.database,
                parts.writer,
                parts.metrics,
                settings.trainer.consume_batch,
                build_report(parts),
            )
            self._consumer.start()

    def stop(self) -> None:
        """What was read is stored, or is read again."""
        if self._consumer is not None:
            self._consumer.stop()
            self._consumer.join()
        if self._relay is not None:
            self._relay.close()
            self._log.close()


def open_parts(settings: TrainerSettings, stopping: threading.Event) -> Parts:
    """The parts over the settings' database, which need not answer yet. Raises StoreUnavailable, SigningKeyError."""
    return Parts(
        settings,
        open_database(settings.trainer_database),
        stopping,
        settings.open_store(),
        read_signing_key(settings.signing_key_file),
        read_trusted_keys(settings.trusted_keys_file),
    )


def list_lock_files(settings: TrainerSettings) -> list[Path]:
    """What one trainer alone may use: the state directory, and a database that is a file."""
    files = [settings.state_dir / "trainer.lock"]
    if settings.trainer_database.startswith("sqlite"):
        path = sqlite_path(settings.trainer_database)
        files.append(path.with_name(f"{path.name}.lock"))
    return files


def build_report(parts: Parts) -> Callable[[int | None, str], None]:
    """What the consumer calls after every look at the log: (lag, error)."""
    shown_at = 0.0

    def report(lag: int | None, error: str) -> None:
        nonlocal shown_at
        parts.board.update(lag=lag, consumer_error=error)
        if not error and time.monotonic() - shown_at >= SHOW_EVERY_S:
            show_inbox(parts.database, parts.board, parts.metrics, parts.settings.trainer)
            shown_at = time.monotonic()

    return report


def wait_for_base(parts: Parts) -> bool:
    """Wait until the base is there; False if the process is to stop first."""
    settings = parts.settings
    if not is_base_ready(settings):
        reason = f"no base policy in {settings.base} yet: python -m trainer.seed makes one"
        log.warning(reason)
        parts.board.show_round("waiting", reason)
    while not is_base_ready(settings):
        if parts.stopping.wait(1.0):
            return False
    return True


def load_base(parts: Parts) -> Backbone:
    """Load the base once: half of what a standby needs to take over in a second."""
    settings, section = parts.settings, parts.settings.trainer
    log.info("loading %s", settings.base)
    parts.board.show_round("waiting", "loading the base policy")

    import torch  # takes seconds: the consumer is at work already

    from trainer.model.backbone import Backbone

    torch.set_num_threads(section.torch_threads)
    backbone = Backbone.load(settings.base, section.model, seed=section.seed, engine_share=settings.engine_gpu_share)
    parts.board.update(is_ready=True)
    return backbone


def build_copies(parts: Parts) -> StoredCopies | None:
    """What keeps the checkpoint store complete, if there is one."""
    section = parts.settings.trainer
    if parts.store is None:
        return None
    return StoredCopies(parts.store, parts.signing_key, parts.metrics, section.collect_every_s, section.collect_grace_s)


def build_learner(parts: Parts, backbone: Backbone) -> Learner:
    """Give every part its piece of the base. Starts the registrar. Needs the lease."""
    settings, section, board = parts.settings, parts.settings.trainer, parts.board

    from trainer.learn.reward.model import RewardModel
    from trainer.run.assembly import Learning, refuse_version

    base_digest = digest_base(settings.base, str(getattr(backbone.causal_lm.config, "_commit_hash", "") or ""))
    quarantine = Quarantine(parts.writer)
    reward = RewardModel(
        backbone, section.reward, reject=quarantine.add, seed=section.seed, half_life_s=section.half_life_s
    )
    learning = Learning(settings, backbone, reward, parts.database, base_digest, quarantine.add, parts.show_pace)
    training = learning.make_training()
    if parts.store is not None:
        wait_for_published(
            parts.store, settings.checkpoints_dir, base_digest, parts.trusted_keys, parts.stopping,
            lambda reason: board.show_round("waiting", reason),
        )  # fmt: skip
    gateway = Gateway(section.gateway_url, locate_secret(settings.state_dir, ADMIN_KEY), section.gateway_timeout_s)
    publisher = Publisher(
        settings.checkpoints_dir,
        training.save,
        parts.database,
        parts.writer,
        gateway,
        fence=parts.lease.fence,
        base_digest=base_digest,
        rank=backbone.adapters.rank,
        make_probe=learning.make_probe,
        on_published=lambda: registrar.wake(),
        signing_key=parts.signing_key,
    )
    registrar = Registrar(
        gateway,
        lambda: [(p.manifest.digest, p.path) for p in publisher.list_counting()],
        settings.checkpoints_dir,
        section.register_every_s,
        lambda error: board.update(registry_error=error),
        build_copies(parts),
        lambda: list_needed(parts.database, publisher.list_counting(), gateway.read_state().stable_digest or ""),
    )
    keeper = RewardKeeper(
        reward,
        parts.database,
        parts.writer,
        settings.reward_dir / base_digest[:12],
        section.reward,
        section.seed,
        section.policy,
        quarantine,
        edit_weight=section.edit_weight,
        list_frozen_prompts=training.list_frozen_prompts,
        figures=learning.measure_version,
        refuse=refuse_version,
    )
    registrar.start()
    return Learner(
        settings=settings,
        keeper=keeper,
        quarantine=quarantine,
        training=training,
        database=parts.database,
        writer=parts.writer,
        gateway=gateway,
        publisher=publisher,
        board=board,
        metrics=parts.metrics,
        curves=parts.curves,
        requests=parts.requests,
        stopping=parts.stopping,
    )

"""Starts the trainer: `python -m trainer.main`. Builds every part, hands them to each other, and stops them.

Consumer, registrar and status server run in threads from the first second; the learner has the main thread. SIGTERM
ends the process within two seconds, whatever it is doing: every part can be killed at any point.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from feedback import inbox
from feedback.checkpoint_store import CheckpointStore
from feedback.database import Writer, open_database, wait_for_database
from feedback.errors import DatabaseError, SigningKeyError, StoreUnavailable
from feedback.relay import Relay
from feedback.schema import migrate_url
from feedback.settings import load_settings
from feedback.signing import SigningKey, TrustedKeys, read_signing_key, read_trusted_keys
from trainer.learn.pacing import Pace
from trainer.process import is_base_ready, limit_kept_primitives, stop_on_signals
from trainer.run.archive import RoundArchive
from trainer.run.checkpoints import digest_base, list_published
from trainer.run.consumer import Consumer
from trainer.run.learner import Learner
from trainer.run.lineage import list_needed
from trainer.run.metrics import Curves, Metrics
from trainer.run.publisher import Publisher
from trainer.run.quarantine import Quarantine
from trainer.run.registry import Gateway, Registrar
from trainer.run.reporter import show_inbox
from trainer.run.requests import RoundRequests
from trainer.run.reward_keeper import RewardKeeper
from trainer.run.server import start_status_server
from trainer.run.status import Board, SamplingView
from trainer.run.stored import StoredCopies, wait_for_published
from trainer.settings import TrainerSettings

log = logging.getLogger("trainer")

SHOW_EVERY_S = 0.5


@dataclass
class Parts:
    """What the process consists of before its base is loaded."""

    settings: TrainerSettings
    database: sa.Engine
    writer: Writer
    store: CheckpointStore | None
    signing_key: SigningKey | None
    trusted_keys: TrustedKeys | None
    board: Board = field(default_factory=Board)
    metrics: Metrics = field(default_factory=Metrics)
    requests: RoundRequests = field(default_factory=RoundRequests)

    def __post_init__(self) -> None:
        self.curves = Curves(self.settings.tensorboard_dir, self.settings.trainer.wandb_project)


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    stopping = threading.Event()
    stop_on_signals(stopping)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(TrainerSettings)
    limit_kept_primitives()
    if settings.trainer.nice:
        os.nice(settings.trainer.nice)
    database = open_database(settings.trainer_database)
    try:
        store, signing_key = settings.open_store(), read_signing_key(settings.signing_key_file)
        trusted_keys = read_trusted_keys(settings.trusted_keys_file)
    except (StoreUnavailable, SigningKeyError) as error:
        log.error("%s", error)
        return 1
    parts = Parts(settings, database, Writer(database), store, signing_key, trusted_keys)
    metrics, board = parts.metrics, parts.board
    server = start_status_server(
        settings.trainer.host,
        settings.trainer.port,
        board,
        metrics.registry,
        RoundArchive(database, settings.checkpoints_dir),
        parts.requests,
    )
    log.info("status on http://%s:%d/status", settings.trainer.host, server.server_port)
    try:
        wait_for_database(settings.trainer_database, settings.trainer.database_wait_s)
        migrate_url(settings.trainer_database, "trainer")
    except DatabaseError as error:
        log.error("%s", error)
        return 1
    consumer = Consumer(
        settings.open_log,
        settings.topic,
        database,
        parts.writer,
        metrics,
        settings.trainer.consume_batch,
        build_report(settings, database, board, metrics),
    )
    consumer.start()
    dead_letter_log = settings.open_log()
    dead_letters = Relay(
        database, parts.writer, dead_letter_log, settings.dead_letter_topic, outbox=inbox.dead_letter_outbox, poll_s=1.0
    )
    dead_letters.start()
    try:
        if wait_for_base(settings, board, stopping):
            learner = build_learner(parts, stopping)
            learner.prepare()
            learner.run()
    finally:
        consumer.stop()
        consumer.join()
        dead_letters.close()
        dead_letter_log.close()
        parts.curves.close()
        parts.writer.close()
        server.shutdown()
    log.info("stopped")
    return 0


def show_pace(parts: Parts, pace: Pace) -> None:
    """How many answers are sampled at a time, and why."""
    parts.metrics.sample_cap.set(pace.cap)
    if pace.slowdown is not None:
        parts.metrics.slowdown.set(pace.slowdown)
    parts.board.update(sampling=SamplingView(pace.cap, pace.reason, pace.slowdown, pace.is_blind))


def build_report(
    settings: TrainerSettings, database: sa.Engine, board: Board, metrics: Metrics
) -> Callable[[int | None, str], None]:
    """What the consumer calls after every look at the log: (lag, error)."""
    shown_at = 0.0

    def report(lag: int | None, error: str) -> None:
        nonlocal shown_at
        board.update(lag=lag, consumer_error=error)
        if not error and time.monotonic() - shown_at >= SHOW_EVERY_S:
            show_inbox(database, board, metrics, settings.trainer)
            shown_at = time.monotonic()

    return report


def wait_for_base(settings: TrainerSettings, board: Board, stopping: threading.Event) -> bool:
    """Wait until the base is there; False if the process is to stop first."""
    if not is_base_ready(settings):
        reason = f"no base policy in {settings.base} yet: python -m trainer.seed makes one"
        log.warning(reason)
        board.show_round("waiting", reason)
    while not is_base_ready(settings):
        if stopping.wait(1.0):
            return False
    return True


def build_copies(parts: Parts) -> StoredCopies | None:
    """What keeps the checkpoint store complete, if there is one."""
    section = parts.settings.trainer
    if parts.store is None:
        return None
    return StoredCopies(parts.store, parts.signing_key, parts.metrics, section.collect_every_s, section.collect_grace_s)


def build_learner(parts: Parts, stopping: threading.Event) -> Learner:
    """Load the base once and give every part its piece of it. Starts the registrar."""
    settings, section, board = parts.settings, parts.settings.trainer, parts.board
    log.info("loading %s", settings.base)
    board.show_round("waiting", "loading the base policy")

    import torch  # takes seconds: the consumer is at work already

    from trainer.learn.reward import RewardModel
    from trainer.model.backbone import Backbone
    from trainer.run.assembly import Learning, refuse_version

    torch.set_num_threads(section.torch_threads)
    share = settings.engine_gpu_share
    backbone = Backbone.load(settings.base, section.model, seed=section.seed, engine_share=share)
    base_digest = digest_base(settings.base, str(getattr(backbone.causal_lm.config, "_commit_hash", "") or ""))
    quarantine = Quarantine(parts.writer)
    reward = RewardModel(backbone, section.reward, reject=quarantine.add, seed=section.seed)
    learning = Learning(
        settings, backbone, reward, parts.database, base_digest, quarantine.add, lambda pace: show_pace(parts, pace)
    )
    training = learning.make_training()
    if parts.store is not None:
        wait_for_published(
            parts.store, settings.checkpoints_dir, base_digest, parts.trusted_keys, stopping,
            lambda reason: board.show_round("waiting", reason),
        )  # fmt: skip
    gateway = Gateway(section.gateway_url, settings.state_dir / "secrets" / "admin_key", section.gateway_timeout_s)
    registrar = Registrar(
        gateway,
        lambda: [(p.manifest.digest, p.path) for p in list_published(settings.checkpoints_dir, base_digest)],
        settings.checkpoints_dir,
        section.register_every_s,
        lambda error: board.update(registry_error=error),
        build_copies(parts),
        lambda: list_needed(
            list_published(settings.checkpoints_dir, base_digest), gateway.read_state().stable_digest or ""
        ),
    )
    publisher = Publisher(
        settings.checkpoints_dir,
        training.save,
        parts.database,
        gateway,
        base_digest=base_digest,
        rank=backbone.adapters.rank,
        make_probe=learning.make_probe,
        on_published=registrar.wake,
        signing_key=parts.signing_key,
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
        weigh=training.weigh,
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
        stopping=stopping,
    )


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # torch takes seconds to take itself down, and there is nothing left to keep

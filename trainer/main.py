"""Starts the trainer: `python -m trainer.main`. Builds every part, hands them to each other, and stops them.

Consumer, registrar and status server run in threads from the first second; the learner has the main thread. SIGTERM
ends the process within two seconds, whatever it is doing: every part can be killed at any point.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa

from feedback import inbox
from feedback.database import Writer, open_database, wait_for_database
from feedback.errors import DatabaseError
from feedback.manifest import Probe
from feedback.relay import Relay
from feedback.schema import migrate_url
from feedback.settings import load_settings
from trainer.run import preferences
from trainer.run.checkpoints import digest_base, list_published
from trainer.run.consumer import Consumer
from trainer.run.learner import Learner
from trainer.run.metrics import Curves, Metrics
from trainer.run.publisher import Publisher
from trainer.run.quarantine import Quarantine
from trainer.run.registry import Gateway, Registrar
from trainer.run.reporter import show_inbox
from trainer.run.reward_keeper import RewardKeeper
from trainer.run.round import Training
from trainer.run.status import Board, start_status_server
from trainer.settings import TrainerSettings
from trainer.text.pairs import Pair
from trainer.text.rejected import Reject

if TYPE_CHECKING:
    from trainer.judge.evaluate import FrozenSets
    from trainer.learn.reward import RewardModel
    from trainer.model.stack import PolicyStack

log = logging.getLogger("trainer")

STOP_WITHIN_S = 1.5
SHOW_EVERY_S = 0.5
SEED_MARKER = "seed.json"  # written last by trainer.seed
MAX_PROBE_TOKENS = 64
MAX_JUDGED_PROMPTS = 64
PROBE_TEXT = "Which of these two answers do you prefer, and why?"


def main() -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    stopping = threading.Event()
    _stop_on_signals(stopping)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(TrainerSettings)
    if settings.trainer.nice:
        os.nice(settings.trainer.nice)
    metrics, board, curves = Metrics(), Board(), Curves(settings.tensorboard_dir)
    server = start_status_server(settings.trainer.host, settings.trainer.port, board, metrics.registry)
    log.info("status on http://%s:%d/status", settings.trainer.host, server.server_port)
    try:
        wait_for_database(settings.trainer_database, settings.trainer.database_wait_s)
        migrate_url(settings.trainer_database, "trainer")
    except DatabaseError as error:
        log.error("%s", error)
        return 1
    database = open_database(settings.trainer_database)
    writer = Writer(database)
    consumer = Consumer(
        settings.open_log,
        settings.topic,
        database,
        writer,
        metrics,
        settings.trainer.consume_batch,
        build_report(settings, database, board, metrics),
    )
    consumer.start()
    dead_letter_log = settings.open_log()
    dead_letters = Relay(
        database, writer, dead_letter_log, settings.dead_letter_topic, outbox=inbox.dead_letter_outbox, poll_s=1.0
    )
    dead_letters.start()
    try:
        if wait_for_base(settings, board, stopping):
            learner = build_learner(settings, database, writer, board, metrics, curves, stopping)
            learner.prepare()
            learner.run()
    finally:
        consumer.stop()
        consumer.join()
        dead_letters.close()
        dead_letter_log.close()
        curves.close()
        writer.close()
        server.shutdown()
    log.info("stopped")
    return 0


def _stop_on_signals(stopping: threading.Event) -> None:
    """Wait for signals in a thread of their own: the main thread may be inside torch for seconds."""
    signals = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before any other thread exists: they inherit it

    def wait() -> None:
        signal.sigwait(signals)
        stopping.set()
        threading.Event().wait(STOP_WITHIN_S)
        os._exit(0)  # nothing is lost: whatever was under way begins again

    threading.Thread(target=wait, name="signals", daemon=True).start()


def build_report(
    settings: TrainerSettings, database: sa.Engine, board: Board, metrics: Metrics
) -> Callable[[int | None, str], None]:
    """What the consumer calls after every look at the log: (lag, error)."""
    shown_at = 0.0

    def report(lag: int | None, error: str) -> None:
        nonlocal shown_at
        board.update(lag=lag, consumer_error=error)
        if not error and time.monotonic() - shown_at >= SHOW_EVERY_S:
            show_inbox(database, board, metrics, settings.trainer.round_every_preferences)
            shown_at = time.monotonic()

    return report


def is_base_ready(settings: TrainerSettings) -> bool:
    """Whether the base can be loaded: a whole directory, or a hub id."""
    directory = Path(settings.base)
    if directory == settings.state_dir / "seed":
        return (directory / SEED_MARKER).is_file()
    return (directory / "config.json").is_file() or not (directory.exists() or directory.is_absolute())


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


def build_learner(
    settings: TrainerSettings,
    database: sa.Engine,
    writer: Writer,
    board: Board,
    metrics: Metrics,
    curves: Curves,
    stopping: threading.Event,
) -> Learner:
    """Load the base once and give every part its piece of it. Starts the registrar."""
    import torch  # takes seconds: the consumer is at work already

    from trainer.learn.reward import RewardModel
    from trainer.model.stack import LORA_RANK, PolicyStack

    section = settings.trainer
    torch.set_num_threads(section.torch_threads)
    log.info("loading %s", settings.base)
    board.show_round("waiting", "loading the base policy")
    stack = PolicyStack.load(settings.base, seed=section.seed)
    base_digest = digest_base(settings.base, str(getattr(stack.causal_lm.config, "_commit_hash", "") or ""))
    gateway = Gateway(section.gateway_url, settings.state_dir / "secrets" / "admin_key", section.gateway_timeout_s)
    registrar = Registrar(
        gateway,
        lambda: [(p.manifest.digest, p.path) for p in list_published(settings.checkpoints_dir, base_digest)],
        settings.checkpoints_dir,
        section.register_every_s,
        lambda error: board.update(registry_error=error),
    )
    publisher = Publisher(
        settings,
        stack,
        database,
        gateway,
        base_digest=base_digest,
        rank=LORA_RANK,
        make_probe=lambda: make_probe(stack, load_frozen(settings, database)),
        on_published=registrar.wake,
    )
    quarantine = Quarantine(writer)
    reward = RewardModel(stack, reject=quarantine.add)
    directory = settings.reward_dir / base_digest[:12]
    keeper = RewardKeeper(reward, database, writer, directory, section.reward, section.seed, quarantine)
    registrar.start()
    return Learner(
        settings=settings,
        stack=stack,
        keeper=keeper,
        quarantine=quarantine,
        training=build_training(settings, stack, reward, lambda: load_frozen(settings, database), quarantine.add),
        database=database,
        writer=writer,
        gateway=gateway,
        publisher=publisher,
        board=board,
        metrics=metrics,
        curves=curves,
        stopping=stopping,
    )


def build_training(
    settings: TrainerSettings,
    stack: PolicyStack,
    reward: RewardModel,
    load: Callable[[], FrozenSets],
    reject: Reject,
) -> Training:
    """The learning functions over one stack."""
    from trainer.judge.evaluate import EvaluateSettings, judge_policy, something_to_learn
    from trainer.learn.dpo import run_dpo

    dpo = settings.trainer.learn.dpo

    def train(
        pairs: list[Pair], rng: random.Random, progress: Callable[[float, dict[str, float]], None]
    ) -> dict[str, float]:
        return run_dpo(
            stack,
            pairs,
            beta=dpo.beta,
            lr=dpo.lr,
            epochs=dpo.epochs,
            batch_size=dpo.batch_size,
            label_smoothing=dpo.label_smoothing,
            rng=rng,
            progress=progress,
            reject=reject,
        )

    return Training(
        train=train,
        judge=lambda: judge_policy(stack, reward, load(), EvaluateSettings(seed=settings.trainer.seed)),
        has_something_to_learn=lambda correct, total: something_to_learn(correct, total, reward.foreseen),
    )


def load_frozen(settings: TrainerSettings, database: sa.Engine) -> FrozenSets:
    """The operator's frozen set, else the one beside the base; without any, prompts of held-out preferences serve."""
    from trainer.judge.evaluate import load_frozen_sets

    with database.connect() as connection:
        held_out = [pair for _, pair in preferences.load_held_out(connection, 10 * MAX_JUDGED_PROMPTS)]
    prompts = {pair.prompt_key: pair.messages for pair in held_out}
    path, of_base = settings.frozen_set, Path(settings.base) / settings.frozen_set.name
    found = of_base if of_base.is_file() and not path.is_file() else path
    return load_frozen_sets(found, list(prompts.values())[:MAX_JUDGED_PROMPTS])


def make_probe(stack: PolicyStack, frozen: FrozenSets) -> Probe:
    """What adapter "policy", and the base alone, say of a frozen prompt with its answer; never of a person's prompt."""
    if frozen.rows:
        row = frozen.rows[0]
        ids, _ = stack.encode(row.messages, (*row.references, row.fact)[0])
    else:
        ids, _ = stack.encode([{"role": "user", "content": PROBE_TEXT}], PROBE_TEXT)
    ids = list(ids[:MAX_PROBE_TOKENS])
    return Probe(
        prompt_token_ids=ids,
        logprobs=stack.prompt_logprobs(ids, "policy"),
        base_logprobs=stack.prompt_logprobs(ids, None),
    )


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # torch takes seconds to take itself down, and there is nothing left to keep

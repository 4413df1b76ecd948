"""Starts the trainer: `python -m trainer.main`, which stays, or `python -m trainer.main --once`, for one round (once.py).

Of several trainers on one PostgreSQL one works. The others stand by with the base loaded, and take over once the lease runs out or
is given back. Consumer, registrar, lease and status server run in threads; the learner has the main thread. SIGTERM ends the
process within two seconds, whatever it is doing: every part can be killed at any point.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable

from feedback.database import wait_for_database
from feedback.errors import DatabaseError, SigningKeyError, StoreUnavailable
from feedback.schema import migrate_url
from feedback.secret_files import TRAINER_TOKEN, locate_secret
from feedback.settings import load_settings
from trainer.once import run_once
from trainer.parts import TEMPORARY, Parts, build_learner, load_base, open_parts, wait_for_base
from trainer.process import limit_kept_primitives, stop_on_signals
from trainer.run.report.archive import RoundArchive
from trainer.run.status.requests import RoundRequest
from trainer.run.status.server import start_status_server
from trainer.settings import TrainerSettings

log = logging.getLogger("trainer")

POLL_S = 0.1  # of a standby: has it the lease?
STOPPED = 128 + signal.SIGTERM  # a job that was stopped is tried again


def main() -> int:
    """Run until SIGTERM or SIGINT, or for one round; return the exit code."""
    asked = parse_arguments()
    stopping, last = threading.Event(), list[Callable[[], None]]()
    stop_on_signals(stopping, last, STOPPED if asked.once else 0)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = load_settings(TrainerSettings)
    limit_kept_primitives()
    if settings.trainer.nice:
        os.nice(settings.trainer.nice)
    try:
        parts = open_parts(settings, stopping)
    except (StoreUnavailable, SigningKeyError) as error:
        log.error("%s", error)
        return 1
    last.append(parts.lease.stop)
    if asked.once:
        request = RoundRequest(from_base=asked.from_base) if asked.now or asked.from_base else None
        code = run_once(parts, request)
        return STOPPED if stopping.is_set() else code
    return run_on(parts)


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser("python -m trainer.main", description="Learns from choices, in rounds.")
    parser.add_argument("--once", action="store_true", help="take in the log, train the round that is due, and end")
    parser.add_argument("--now", action="store_true", help="with --once: train, whether or not a round is due")
    parser.add_argument("--from-base", action="store_true", help="with --once: train now, from the base, on all rows")
    asked = parser.parse_args()
    if not asked.once and (asked.now or asked.from_base):
        parser.error("--now and --from-base go with --once; a trainer that runs is asked by `prefloop round run`")
    return asked


def run_on(parts: Parts) -> int:
    """Serve the status; work once the lease is held, until the process is to stop."""
    settings = parts.settings
    server = start_status_server(
        settings.trainer.host,
        settings.trainer.port,
        parts.board,
        parts.metrics.registry,
        RoundArchive(parts.database, settings.checkpoints_dir),
        parts.requests,
        locate_secret(settings.state_dir, TRAINER_TOKEN),
    )
    log.info("status on http://%s:%d/status", settings.trainer.host, server.server_port)
    try:
        wait_for_database(settings.trainer_database, settings.trainer.database_wait_s)
        migrate_url(settings.trainer_database, "trainer")
    except DatabaseError as error:
        log.error("%s", error)
        return 1
    if not parts.shares_database and not parts.lease.try_take():
        log.error(
            "%s trains here already: on SQLite one trainer alone may; for a standby set trainer.database_url to PostgreSQL",
            parts.lock.name_owner(),
        )
        return TEMPORARY
    try:
        work(parts)
    finally:
        parts.intake.stop()
        parts.curves.close()
        parts.writer.close()
        parts.lease.stop()
        server.shutdown()
    log.info("stopped")
    return 0


def work(parts: Parts) -> None:
    """Learn until the process is to stop; before that, stand by for as long as it takes.

    Where others may work too, the base comes first: one that has it loaded is to work, not one that begins. And loading holds the
    interpreter for so long that a lease would run out meanwhile on a busy machine.
    """
    if parts.lease.held.is_set():
        parts.show_leading()
        parts.intake.start()
    if not wait_for_base(parts):
        return
    base = load_base(parts)
    parts.lease.start()
    while not parts.lease.held.is_set():
        if parts.stopping.wait(POLL_S):
            return
    parts.show_leading()
    parts.intake.start()
    learner = build_learner(parts, base)
    learner.prepare()
    learner.run()


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    os._exit(code)  # torch takes seconds to take itself down, and there is nothing left to keep

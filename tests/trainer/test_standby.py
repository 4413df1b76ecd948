"""Two trainers as processes on one PostgreSQL: one works, the other takes over from a killed one, and from one that was paused."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.database import open_database
from prefloop.servers.postgres import Postgres
from tests.postgres import run_server
from tests.trainer.gateway_server import GatewayServer
from tests.trainer.trainer_process import WAIT_S, Trainer, make_base, send, wait_until
from trainer.run import rounds

TAKEOVER_S = 40.0  # the lease of 8 s, and a busy machine


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with run_server() as server:
        yield server


@pytest.fixture
def gateway() -> Iterator[GatewayServer]:
    gateway = GatewayServer()
    yield gateway
    gateway.close()


def list_rounds(url: str) -> list[tuple[int, str, int]]:
    """(number, outcome, attempts) of each."""
    engine = open_database(url)
    try:
        with engine.connect() as connection:
            return [
                (row.number, row.outcome, row.attempts)
                for row in connection.execute(sa.select(rounds.rounds).order_by(rounds.rounds.c.number))
            ]
    finally:
        engine.dispose()


def test_a_standby_on_its_own_disk_goes_on_with_the_round_of_a_killed_trainer(
    server: Postgres, gateway: GatewayServer, tmp_path: Path
) -> None:
    """Checkpoints lie where both see them, as they do with checkpoints_url; all else is each one's own."""
    base, log = make_base(tmp_path), f"sqlite:{tmp_path / 'log.db'}"
    database = server.create_database("standby_kill")
    send(log, 24)
    first = Trainer(tmp_path / "a", base, gateway.url, database, log, PREFLOOP_FAULTS="round.step=1")
    trainers = [first]
    try:
        wait_until(lambda: first.read("/status").get("lease", {}).get("state") == "leading", "the first works")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "checkpoints").symlink_to(tmp_path / "a" / "checkpoints")
        second = Trainer(tmp_path / "b", base, gateway.url, database, log)
        trainers.append(second)
        first.process.wait(WAIT_S)
        assert first.process.returncode == -signal.SIGKILL
        wait_until(lambda: second.state() == "leading", "the second took over")
        wait_until(lambda: second.read("/status").get("rounds"), "the round ended")
        [(number, outcome, attempts)] = list_rounds(database)
        assert (number, attempts) == (1, 2) and outcome in ("published", "stopped"), second.errors()  # as the gate says
        assert "begins again from its plan" in second.errors()
        assert second.read("/status")["preferences"] == 24
    finally:
        for each in trainers:
            each.stop()


def test_a_paused_trainer_ends_when_it_wakes_and_another_works(
    server: Postgres, gateway: GatewayServer, tmp_path: Path
) -> None:
    base, log = make_base(tmp_path), f"sqlite:{tmp_path / 'log.db'}"
    database = server.create_database("standby_pause")
    first = Trainer(tmp_path / "a", base, gateway.url, database, log)
    trainers = [first]
    try:
        wait_until(lambda: first.state() == "leading" and gateway.known, "the first works")
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "checkpoints").symlink_to(tmp_path / "a" / "checkpoints")
        second = Trainer(tmp_path / "b", base, gateway.url, database, log)
        trainers.append(second)
        wait_until(lambda: second.state() == "standby", "the second stands by")
        status = wait_until(lambda: second.read("/status"), "its status")
        assert status["lease"]["holder"] == first.read("/status")["lease"]["holder"]
        assert status["checkpoint"] == gateway.known[0]["id"] and status["round"]["state"] == "idle"
        os.kill(first.process.pid, signal.SIGSTOP)
        paused_at = time.monotonic()
        wait_until(lambda: second.read("/readyz").get("state") == "leading", "the second took over", TAKEOVER_S)
        assert time.monotonic() - paused_at > 1.0
        send(log, 4)
        wait_until(lambda: second.read("/status")["preferences"] == 4, "it takes in the log")
        os.kill(first.process.pid, signal.SIGCONT)
        assert first.process.wait(60) == os.EX_TEMPFAIL
        assert "the lease is lost" in first.errors()
        second.process.terminate()
        assert second.process.wait(60) == 0
    finally:
        for each in trainers:
            each.stop()


def test_a_second_trainer_on_sqlite_says_so_and_ends(gateway: GatewayServer, tmp_path: Path) -> None:
    base, log = make_base(tmp_path), f"sqlite:{tmp_path / 'log.db'}"
    database = f"sqlite:{tmp_path / 'trainer.db'}"
    first = Trainer(tmp_path / "a", base, gateway.url, database, log)
    second = None
    try:
        wait_until(lambda: first.read("/status").get("lease", {}).get("state") == "leading", "the first works")
        second = Trainer(tmp_path / "b", base, gateway.url, database, log)
        assert second.process.wait(WAIT_S) == os.EX_TEMPFAIL
        assert f"process {first.process.pid} ({tmp_path / 'trainer.db.lock'}) trains here already" in second.errors()
        assert first.process.poll() is None
    finally:
        for each in filter(None, (first, second)):
            each.stop()

"""One round as a job: nothing due, a round that is killed and tried again, and a job beside a trainer that works."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from feedback.database import open_database
from tests.trainer.gateway_server import GatewayServer
from tests.trainer.trainer_process import Trainer, make_base, send
from trainer.run import rounds
from trainer.run.state_lock import StateLock


@pytest.fixture
def gateway() -> Iterator[GatewayServer]:
    gateway = GatewayServer()
    yield gateway
    gateway.close()


def run(folder: Path, gateway: GatewayServer, *arguments: str, **env: str) -> tuple[int, str]:
    """A job to its end: (exit status, last line)."""
    database, log = f"sqlite:{folder / 'trainer.db'}", f"sqlite:{folder / 'log.db'}"
    job = Trainer(folder / "state", folder / "base", gateway.url, database, log, "--once", *arguments, **env)
    try:
        return job.finish()
    finally:
        job.stop()


def test_a_job_says_why_nothing_was_due_and_one_that_was_killed_goes_on_when_it_is_tried_again(
    gateway: GatewayServer, tmp_path: Path
) -> None:
    make_base(tmp_path)
    send(f"sqlite:{tmp_path / 'log.db'}", 4)
    assert run(tmp_path, gateway) == (0, "no round: 4 of 24 new decisive preferences")
    assert [row["number"] for row in gateway.known] == [0]
    code, _ = run(tmp_path, gateway, "--now", PREFLOOP_FAULTS="round.trained=1")
    assert code == -signal.SIGKILL
    code, said = run(tmp_path, gateway)
    assert code == 0 and said.startswith(("round 1 published c-000001-", "round 1 stopped: offline gate: ")), said
    engine = open_database(f"sqlite:{tmp_path / 'trainer.db'}")
    with engine.connect() as connection:
        found = rounds.find_round(connection, 1)
    engine.dispose()
    assert found is not None and found["attempts"] == 2
    gateway.rollout = "Ramping"
    send(f"sqlite:{tmp_path / 'log.db'}", 24, first=4)
    code, said = run(tmp_path, gateway)
    assert code == 0 and said.endswith("rollout rollout-1 is Ramping")


def test_a_job_beside_a_trainer_that_works_is_to_be_tried_again(gateway: GatewayServer, tmp_path: Path) -> None:
    make_base(tmp_path)
    lock = StateLock([tmp_path / "state" / "trainer.lock"])
    assert lock.try_lock()
    owner = f"process {os.getpid()} ({tmp_path / 'state' / 'trainer.lock'})"
    assert run(tmp_path, gateway) == (os.EX_TEMPFAIL, f"another trainer works: {owner}")
    lock.unlock()

"""Acknowledged choices and signals survive `kill -9` at random moments, and reach the trainer exactly once."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.choices import choices, count_outbox
from feedback.database import Writer, create_tables, open_database, write_transaction
from feedback.inbox import consume, load_offset
from feedback.inbox import metadata as trainer_metadata
from feedback.inbox import signals as trainer_signals
from feedback.log import open_log
from feedback.relay import Relay
from feedback.signals import signals
from tests.feedback.choosing_process import signal_once
from tests.feedback.reading import load_preferences

ROOT = Path(__file__).parents[2]
NUM_KILLS = 5


def choose_until_killed(state_dir: Path, run: int, rng: random.Random) -> list[str]:
    """Start the choosing process, kill it at a random moment after its first choice, return what it acknowledged."""
    acknowledged = state_dir / f"acknowledged-{run}"
    command = [sys.executable, "-m", "tests.feedback.choosing_process", str(state_dir), f"run{run}"]
    with acknowledged.open("wb") as out, subprocess.Popen(command, cwd=ROOT, stdout=out) as process:
        try:
            deadline = time.monotonic() + 60
            while not acknowledged.stat().st_size:
                assert process.poll() is None and time.monotonic() < deadline, "the process chose nothing"
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.4))
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    return acknowledged.read_text().splitlines()


@pytest.mark.parametrize("seed", [7])
def test_acknowledged_choices_and_signals_survive_kill_9_and_arrive_once(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    lines = [line for run in range(NUM_KILLS) for line in choose_until_killed(tmp_path, run, rng)]
    acknowledged = [line for line in lines if not line.startswith("sig_")]
    signalled = dict(line.split() for line in lines if line.startswith("sig_"))  # key by id
    assert len(acknowledged) >= NUM_KILLS and signalled

    database = open_database(f"sqlite:{tmp_path / 'gateway.db'}")
    with database.connect() as connection:
        stored = list(connection.execute(sa.select(choices.c.comparison_id)).scalars())
        stored_signals = list(connection.execute(sa.select(signals.c.id)).scalars())
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    assert set(acknowledged) <= set(stored)
    assert signalled.keys() <= set(stored_signals)
    with write_transaction(database) as connection:  # sent again, as clients do that heard no answer
        assert all(signal_once(connection, key).id == signal_id for signal_id, key in signalled.items())

    deliver_the_rest(tmp_path, database)
    arrived, arrived_signals = take_all(tmp_path)
    assert sorted(arrived) == sorted(stored)  # each stored choice exactly once
    assert sorted(arrived_signals) == sorted(stored_signals)
    database.dispose()


def deliver_the_rest(state_dir: Path, database: sa.Engine) -> None:
    log, writer = open_log(f"sqlite:{state_dir / 'log.db'}"), Writer(database)
    relay = Relay(database, writer, log, "t")
    while relay.move_batch():
        pass
    with database.connect() as connection:
        assert count_outbox(connection) == 0
    writer.close()
    log.close()


def take_all(state_dir: Path) -> tuple[list[str], list[str]]:
    """Read the log as the trainer does; return the comparison ids of the preferences, the event ids of the signals."""
    log, database = open_log(f"sqlite:{state_dir / 'log.db'}"), open_database(f"sqlite:{state_dir / 'trainer.db'}")
    create_tables(database, trainer_metadata)
    for partition in log.partitions("t"):
        while True:
            with write_transaction(database) as connection:
                offset = load_offset(connection, "t", partition)
                records = log.read("t", partition, offset, 100, 0.0)
                consume(connection, records, read_from=offset)
            if not records:
                break
    with database.connect() as connection:
        chosen = [row.choice.comparison.id for row in load_preferences(connection)]
        signalled = list(connection.execute(sa.select(trainer_signals.c.event_id)).scalars())
    log.close()
    database.dispose()
    return chosen, signalled

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from prefloop.servers.postgres import Postgres, PostgresError
from tests.postgres import run_server


@pytest.fixture
def server() -> Iterator[Postgres]:
    with run_server() as started:
        yield started


@contextlib.contextmanager
def connect(url: str) -> Iterator[sa.Connection]:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def count_rows(url: str) -> int:
    with connect(url) as connection:
        return int(connection.execute(sa.text("SELECT count(*) FROM kept")).scalar_one())


def test_what_was_committed_is_there_after_a_kill_on_the_same_port(server: Postgres) -> None:
    url = server.create_database("kept")
    with connect(url) as connection:
        connection.execute(sa.text("CREATE TABLE kept AS SELECT 1 AS one"))
    pid = server.pid
    server.kill()
    with pytest.raises(sa.exc.OperationalError):
        count_rows(url)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    server.start()
    assert server.pid != pid
    assert count_rows(url) == 1


def test_a_kill_cuts_open_sessions(server: Postgres) -> None:
    engine = sa.create_engine(server.url)
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT 1"))
        server.kill()
        with pytest.raises(sa.exc.OperationalError):
            connection.execute(sa.text("SELECT 1"))
    engine.dispose()


def test_a_stop_and_a_start_keep_the_data(server: Postgres) -> None:
    url = server.create_database("kept")
    with connect(url) as connection:
        connection.execute(sa.text("CREATE TABLE kept AS SELECT 1 AS one"))
    server.stop()
    with pytest.raises(PostgresError, match="not running"):
        _ = server.pid
    server.start()
    assert server.create_database("kept") == url
    assert count_rows(url) == 1


def test_a_server_left_behind_by_a_killed_owner_is_replaced(server: Postgres) -> None:
    left = server.pid
    again = Postgres(server.folder, server.port)
    again.start()
    try:
        assert again.pid != left
    finally:
        again.stop()


def test_the_command_prints_the_settings_and_ends_on_a_signal(server: Postgres) -> None:
    port, folder = server.port, server.folder
    server.stop()
    argv = [sys.executable, "-m", "prefloop.servers.postgres", "--folder", str(folder), "--port", str(port)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as command:
        assert command.stdout is not None
        said = dict(command.stdout.readline().strip().split("=") for _ in range(2))
        assert sorted(said) == ["PREFLOOP_GATEWAY__DATABASE_URL", "PREFLOOP_TRAINER__DATABASE_URL"]
        for url in said.values():
            with connect(url) as connection:
                assert connection.execute(sa.text("SELECT 1")).scalar_one() == 1
        command.send_signal(signal.SIGTERM)
        assert command.wait(30) == 0
    with pytest.raises(sa.exc.OperationalError):
        count_rows(next(iter(said.values())))


def test_a_database_name_is_never_quoted_into_sql(server: Postgres) -> None:
    with pytest.raises(ValueError, match="no name"):
        server.create_database("a'; DROP DATABASE postgres; --")

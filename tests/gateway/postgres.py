"""A PostgreSQL for tests: the one that PREFLOOP_TEST_POSTGRES names, or one started here and thrown away.

Skips with its reason where there is none; in CI (environment CI=true) that is a failure.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@contextlib.contextmanager
def run_postgres() -> Iterator[str]:
    """The SQLAlchemy URL of a database that tests may fill."""
    given = os.environ.get("PREFLOOP_TEST_POSTGRES")
    if given:
        yield given
        return
    try:
        import psycopg  # noqa: F401
    except ImportError:
        miss("psycopg is not installed")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        miss("no PostgreSQL under /usr/lib/postgresql")
    folder = Path(tempfile.mkdtemp(prefix="prefloop-postgres-"))
    try:
        yield from _run_server(programs[-1].parent, folder)
    finally:
        shutil.rmtree(folder)


def miss(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


def _run_server(programs: Path, folder: Path) -> Iterator[str]:
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data = folder / "data"
    port = _find_port()

    def call(*arguments: str | Path) -> None:
        done = subprocess.run(
            arguments, cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **user
        )
        assert done.returncode == 0, done.stderr

    call(programs / "initdb", "-D", data, "-U", "prefloop", "-A", "trust", "--no-sync")
    options = f"-p {port} -h 127.0.0.1 -k {folder} -c fsync=off"
    call(programs / "pg_ctl", "-D", data, "-l", folder / "log", "-o", options, "-w", "start")
    try:
        yield f"postgresql+psycopg://prefloop@127.0.0.1:{port}/postgres"
    finally:
        call(programs / "pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def _find_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

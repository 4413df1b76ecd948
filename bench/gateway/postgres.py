"""A PostgreSQL of the bench's own for the gateway with two workers: made empty, with its defaults, thrown away after.

Listens on 127.0.0.1 alone. Raises MissingTool with what to install.
"""

import contextlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.gateway.servers import find_free_port
from bench.gateway.tools import MissingTool


@contextlib.contextmanager
def run_postgres() -> Iterator[str]:
    """The SQLAlchemy URL of an empty database that lives as long as the block. Raises MissingTool."""
    if importlib.util.find_spec("psycopg") is None:
        raise MissingTool("psycopg is not installed")
    found = shutil.which("initdb")
    programs = [Path(found)] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not programs:
        raise MissingTool("there is no PostgreSQL (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="prefloop-bench-"))  # where the server's own user may go
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data, port = folder / "data", find_free_port()

    def call(program: str, *arguments: str) -> None:
        argv = [str(programs[-1].parent / program), "-D", str(data), *arguments]
        with (folder / "log").open("ab") as log:
            if subprocess.run(argv, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **user).returncode:
                raise MissingTool(f"`{' '.join(argv)}` failed: see {folder / 'log'}")

    call("initdb", "-U", "prefloop", "-A", "trust")
    call("pg_ctl", "-w", "-o", f"-p {port} -h 127.0.0.1 -k {folder}", "start")
    try:
        yield f"postgresql+psycopg://prefloop@127.0.0.1:{port}/postgres"
    finally:
        call("pg_ctl", "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)

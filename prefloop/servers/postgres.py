"""A real PostgreSQL on loopback for one machine: demo, tests and measurements. `make postgres` runs one.

Promises: kill() and start() again come back on the same data and the same port, with every committed row. Debian's
binaries, or those on PATH. Everybody on this machine may log in (trust): production runs its own server.
"""

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefloop.servers.ports import find_port

_USER = "prefloop"
_START_TIMEOUT_S = 60.0
_STOP_TIMEOUT_S = 30.0
_DATABASES = ("prefloop_gateway", "prefloop_trainer")


class PostgresError(Exception):
    """The server could not be started, or a program of it failed: its own words."""


class MissingPostgres(PostgresError):
    """There is no PostgreSQL here: the message says how to get one."""


class Postgres:
    """One server with its data under `folder`, which must be reachable for the user `postgres` when we are root.

    port: 0 takes a free one, kept over restarts. options: server settings, such as `fsync=off` for tests. Raises
    MissingPostgres.
    """

    def __init__(self, folder: Path, port: int = 0, *, options: Sequence[str] = ()) -> None:
        self._programs = find_programs()
        self.folder = folder.resolve()
        self.port = port or find_port()
        self._options = options
        self._server: subprocess.Popen[bytes] | None = None
        self._as_user: dict[str, Any] = {}
        if os.geteuid() == 0:  # the server refuses to run as root
            self._as_user = {"user": "postgres", "group": "postgres", "extra_groups": []}

    @property
    def url(self) -> str:
        """The SQLAlchemy URL of the database `postgres`, which is always there."""
        return self._url_of("postgres")

    @property
    def pid(self) -> int:
        """The postmaster's. Raises PostgresError unless it runs."""
        if self._server is None:
            raise PostgresError("PostgreSQL is not running")
        return self._server.pid

    def start(self) -> None:
        """Make the data if there is none, listen, and return when queries are answered. Raises PostgresError.

        A server that a killed owner left behind on this data is stopped first.
        """
        if self._server is not None and self._server.poll() is None:
            return
        data = self._make_data()
        if (data / "postmaster.pid").exists():
            self._try("pg_ctl", "-D", str(data), "-m", "fast", "-w", "stop")
        argv = [str(self._programs / "postgres"), "-D", str(data), "-p", str(self.port), "-h", "127.0.0.1"]
        argv += ["-k", str(self.folder), *(part for option in self._options for part in ("-c", option))]
        with (self.folder / "log").open("ab") as log:
            self._server = subprocess.Popen(
                argv, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, **self._as_user,
            )  # fmt: skip
        self._wait_until_ready(self._server)

    def stop(self) -> None:
        """End it in order: sessions are cut, what was committed is flushed."""
        if self._server is None:
            return
        self._server.send_signal(signal.SIGINT)
        try:
            self._server.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._server = None

    def kill(self) -> None:
        """SIGKILL to the postmaster and to each of its processes at once, as a power cut would end them."""
        if self._server is None:
            return
        pids = _find_children(self._server.pid)  # each leads a process group of its own
        self._server.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait()
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while any(_is_running(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.005)
        self._server = None

    def create_database(self, name: str) -> str:
        """Its URL; made if it is not there yet. name: lower-case letters, digits, underscores. Raises PostgresError."""
        if not re.fullmatch(r"[a-z_][a-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name for a database")
        there = ["-h", "127.0.0.1", "-p", str(self.port), "-U", _USER]
        query = f"SELECT 1 FROM pg_database WHERE datname = '{name}'"
        if not self._call("psql", *there, "-d", "postgres", "-tAc", query).strip():
            self._call("createdb", *there, name)
        return self._url_of(name)

    def _url_of(self, name: str) -> str:
        return f"postgresql+psycopg://{_USER}@127.0.0.1:{self.port}/{name}"

    def _make_data(self) -> Path:
        data = self.folder / "data"
        if (data / "PG_VERSION").exists():
            return data
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._as_user:
            shutil.chown(self.folder, "postgres", "postgres")
        self._call("initdb", "-D", str(data), "-U", _USER, "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
        return data

    def _wait_until_ready(self, server: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not self._try("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1"):
            if server.poll() is not None or time.monotonic() > deadline:
                self.kill()
                last_lines = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise PostgresError(f"PostgreSQL did not start on port {self.port}:\n{last_lines}")
            time.sleep(0.02)

    def _try(self, program: str, *arguments: str) -> bool:
        try:
            self._call(program, *arguments)
        except PostgresError:
            return False
        return True

    def _call(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._programs / program), *arguments], cwd=self.folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, **self._as_user,
        )  # fmt: skip
        if done.returncode != 0:
            raise PostgresError(f"{program} failed: {done.stderr.strip()}")
        return str(done.stdout)


@contextlib.contextmanager
def run_postgres(folder: Path | None = None, port: int = 0, *, options: Sequence[str] = ()) -> Iterator[Postgres]:
    """A server that lives as long as the block; without a folder its data goes with it. Raises PostgresError."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="prefloop-postgres-"))  # where the server's own user may go
            stack.callback(shutil.rmtree, folder)
        server = Postgres(folder, port, options=options)
        stack.callback(server.stop)
        server.start()
        yield server


def find_programs() -> Path:
    """The folder of the newest installed server's programs. Raises MissingPostgres."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found = shutil.which("initdb")
    if not folders and found:
        return Path(found).resolve().parent
    if not folders:
        raise MissingPostgres("there is no PostgreSQL here (Debian: apt-get install postgresql)")
    return max(folders, key=lambda path: float(path.parent.name))


def _find_children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _is_running(pid: int) -> bool:
    """A process that has ended, reaped or not, is not running."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def main(argv: Sequence[str] | None = None) -> None:
    """Run a server until Ctrl-C and print the settings that use it."""
    parser = argparse.ArgumentParser(prog="make postgres", description=main.__doc__)
    state_dir = Path(os.environ.get("PREFLOOP_STATE_DIR", "state"))
    parser.add_argument("--folder", type=Path, default=state_dir / "postgres", help="where its data is kept")
    parser.add_argument("--port", type=int, default=5432)
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the shell that started it has its jobs ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        with run_postgres(arguments.folder, arguments.port) as server:
            gateway, trainer = (server.create_database(name) for name in _DATABASES)
            print(f"PREFLOOP_GATEWAY__DATABASE_URL={gateway}\nPREFLOOP_TRAINER__DATABASE_URL={trainer}", flush=True)
            while server.pid and _is_running(server.pid):
                time.sleep(0.2)
            raise SystemExit(f"PostgreSQL ended: see {server.folder / 'log'}")
    except KeyboardInterrupt:
        pass
    except PostgresError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()

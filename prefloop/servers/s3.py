"""A real S3 server on loopback for one machine: versitygw, with its objects as files. `make s3` runs one.

Promises: the program is built once, by Go and with the user's own Go settings, into a cache; kill() and start() again come
back on the same objects and port. Its keys are for tests alone: production uses a store of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prefloop.servers.children import choose_parent_guard, find_cache, is_open
from prefloop.servers.ports import find_port

VERSION = "v1.8.0"
MODULE = f"github.com/versity/versitygw/cmd/versitygw@{VERSION}"
MIN_GO = (1, 25)  # as its go.mod says
SWITCHING_GO = (1, 21)  # fetches a newer toolchain by itself
START_TIMEOUT_S = 20.0
STOP_TIMEOUT_S = 10.0
REGION = "us-east-1"
BUCKET = "prefloop"

Say = Callable[[str], None]


class S3Failed(Exception):
    """The server cannot run here; the text says why and what to do."""


def find_program() -> Path:
    """Where the program lies: $PREFLOOP_CACHE_DIR/s3, else ~/.cache/prefloop/s3, in a folder of its version."""
    return find_cache("s3") / VERSION / "versitygw"


def check_programs() -> str | None:
    """What is missing to run a server, in words; None if nothing is."""
    if find_program().exists():
        return None
    if shutil.which("go") is None:
        return f"go is missing: install Go {MIN_GO[0]}.{MIN_GO[1]} or newer; it builds the S3 server once"
    if (version := _find_go_version()) < SWITCHING_GO:
        return f"Go {MIN_GO[0]}.{MIN_GO[1]} or newer is needed, `go version` says {'.'.join(map(str, version))}"
    return None


def install_s3(say: Say = print) -> Path:
    """The program; has Go build it the first time (2 CPU minutes, 60 MB). Raises S3Failed."""
    if missing := check_programs():
        raise S3Failed(missing)
    program = find_program()
    program.parent.mkdir(parents=True, exist_ok=True)
    with (program.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be building it right now
        if not program.exists():
            say(f"== Building the S3 server {MODULE} into {program.parent} (2 CPU minutes, once)")
            _build(program)
            say("== The S3 server is there")
    return program


def _build(program: Path) -> None:
    with tempfile.TemporaryDirectory(dir=program.parent) as name:
        env = {**os.environ, "GOBIN": name, "GOFLAGS": "", "CGO_ENABLED": "0"}
        if _find_go_version() < MIN_GO:
            env["GOTOOLCHAIN"] = f"go{MIN_GO[0]}.{MIN_GO[1]}.0+auto"
        command = ["nice", "-n", "10", "go", "install", "-trimpath", "-ldflags=-s -w", MODULE]
        done = subprocess.run(command, cwd=name, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            raise S3Failed(f"Go could not build the S3 server (are its modules within reach?):\n{done.stdout[-2000:]}")
        (Path(name) / "versitygw").rename(program)


def _find_go_version() -> tuple[int, ...]:
    said = subprocess.run(["go", "version"], capture_output=True, text=True).stdout
    found = re.search(r"go(\d+)\.(\d+)", said)
    return (int(found[1]), int(found[2])) if found else (0, 0)


class S3Server:
    """One server whose objects lie under `folder`. port 0 takes a free one, kept over restarts. Raises S3Failed."""

    access_key, secret_key = "prefloop", "prefloop-secret"

    def __init__(self, folder: Path, port: int = 0, *, say: Say = print) -> None:
        self._program = install_s3(say)
        self.folder = folder.resolve()
        self.port = port or find_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The SDK's variables that reach it, for the processes that use it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "NO_PROXY": ",".join(filter(None, (os.environ.get("NO_PROXY"), "127.0.0.1"))),
        }

    @property
    def is_running(self) -> bool:
        """Whether the process lives; it may still be starting."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, "the S3 server does not run"
        return self._process.pid

    def make_bucket(self, name: str = BUCKET) -> Path:
        """The folder of a bucket's objects, made if it is not there. name: three lower-case letters or more."""
        folder = self.folder / "buckets" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def start(self) -> None:
        """Start, and return when it answers. Raises S3Failed with the end of its log."""
        assert not self.is_running, "the S3 server runs already"
        if is_open(self.port):
            raise S3Failed(f"port {self.port} is taken: stop what listens there, or choose another --port")
        (self.folder / "buckets").mkdir(parents=True, exist_ok=True)
        (self.folder / "attributes").mkdir(exist_ok=True)
        argv = [str(self._program), "--port", f"127.0.0.1:{self.port}", "--region", REGION, "--quiet"]
        argv += ["posix", "--sidecar", str(self.folder / "attributes"), str(self.folder / "buckets")]
        keys = {"ROOT_ACCESS_KEY": self.access_key, "ROOT_SECRET_KEY": self.secret_key}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                argv,
                cwd=self.folder,
                env={**os.environ, **keys},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us: it is stopped in order
                preexec_fn=choose_parent_guard(),
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not is_open(self.port):
            if not self.is_running or time.monotonic() > deadline:
                self.kill()
                said = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise S3Failed(f"the S3 server did not start on port {self.port}:\n{said}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop in order; by force after 10 s. Idempotent."""
        if self._process is None:
            return
        if self.is_running:
            self._process.send_signal(signal.SIGCONT)  # it may have been made to hang
            self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL: what a crash does to it. `start` comes back on the same objects."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def run_s3(folder: Path | None = None, port: int = 0, *, say: Say = print) -> Iterator[S3Server]:
    """A server that lives as long as the block; without a folder its objects go with it. Raises S3Failed."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="prefloop-s3-"))
            stack.callback(shutil.rmtree, folder)
        server = S3Server(folder, port, say=say)
        stack.callback(server.stop)
        server.start()
        yield server


def main(argv: Sequence[str] | None = None) -> None:
    """Run a server until Ctrl-C and print the settings that use it."""
    parser = argparse.ArgumentParser(prog="make s3", description=main.__doc__)
    state_dir = Path(os.environ.get("PREFLOOP_STATE_DIR", "state"))
    parser.add_argument("--folder", type=Path, default=state_dir / "s3", help="where its objects are kept")
    parser.add_argument("--port", type=int, default=7070)
    arguments = parser.parse_args(argv)
    for number in (signal.SIGINT, signal.SIGTERM):  # also where the shell that started it has its jobs ignore Ctrl-C
        signal.signal(number, signal.default_int_handler)
    try:
        with run_s3(arguments.folder, arguments.port) as server:
            server.make_bucket()
            variables = {**server.environment, "PREFLOOP_CHECKPOINTS_URL": f"s3://{BUCKET}/checkpoints"}
            print("".join(f"{name}={value}\n" for name, value in variables.items()), end="", flush=True)
            while server.is_running:
                time.sleep(0.2)
            raise SystemExit(f"the S3 server ended: see {server.folder / 'log'}")
    except KeyboardInterrupt:
        pass
    except S3Failed as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()

"""Completions while Kafka is down, while it hangs, and while PostgreSQL is down, against all up: `python -m bench.outage`.

Every round measures every phase, twice all up; people ask for pairs and choose beside it, so that outbox and comparisons
have work. Their keys have no limits: what a key may still spend cannot be known without the database. The last line is
one JSON object; failed counts completions and questions that got no answer, and must be 0.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from bench.gateway.checkpoints import make_key
from bench.gateway.loads import LoadFailed, build_request
from bench.gateway.peers import GATEWAY, Field, Peer
from bench.gateway.servers import ServerFailed
from bench.gateway.tools import MissingTool, compile_program
from bench.outage.figures import Phase, Sample, compute_figures, render
from bench.outage.people import People
from feedback.secret_files import read_admin_key
from prefloop.servers.kafka import Broker, KafkaFailed
from prefloop.servers.postgres import Postgres, PostgresError

CONNECTIONS = 16
_SETTLE_S = 3.0  # from an outage's begin or end to the measurement
_CATCH_UP_S = 60.0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='make bench-outage ARGS="…"', description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a phase")
    parser.add_argument("--hung-seconds", type=float, default=60.0, help="how long the broker hangs")
    parser.add_argument("--rate", type=int, default=500, help="completions a second")
    parser.add_argument("--state-dir", type=Path, default=Path(os.environ.get("PREFLOOP_STATE_DIR", "state")))
    return parser.parse_args()


class Machine:
    """The gateway between the mock, Kafka and PostgreSQL, and the outages that may befall it."""

    def __init__(self, broker: Broker, database: Postgres, peer: Peer, admin_key: str, people: People) -> None:
        self.peer, self.people = peer, people
        self._admin_key = admin_key
        self._broker, self._database = broker, database

    @contextlib.contextmanager
    def suffer(self, phase: Phase) -> Iterator[None]:
        """Let the outage begin, and end it; then wait until the outbox is empty again."""
        if phase is Phase.BROKER_DOWN:
            self._broker.kill()
        elif phase is Phase.BROKER_HUNG:
            os.kill(self._broker.pid, signal.SIGSTOP)
        elif phase is Phase.DATABASE_DOWN:
            self._database.kill()
        try:
            yield
        finally:
            if phase is Phase.BROKER_DOWN:
                self._broker.start()
            elif phase is Phase.BROKER_HUNG:
                os.kill(self._broker.pid, signal.SIGCONT)
            elif phase is Phase.DATABASE_DOWN:
                self._database.start()
            self._catch_up()

    def _catch_up(self) -> None:
        deadline = time.monotonic() + _CATCH_UP_S
        headers = {"authorization": f"Bearer {self._admin_key}"}
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError, KeyError):
                status = httpx.get(f"{self.peer.server.url}/operator/v1/status", headers=headers, timeout=5).json()
                if status["counters"]["outbox_pending"] < 50:
                    time.sleep(_SETTLE_S)
                    return
            time.sleep(0.2)
        raise ServerFailed("the outbox did not empty after an outage")


@contextlib.contextmanager
def start_machine(folder: Path, run_folder: Path) -> Iterator[Machine]:
    """Everything started. Raises MissingTool, KafkaFailed, PostgresError, ServerFailed."""
    with contextlib.ExitStack() as stack:
        compile_program("mock", folder)
        data = Path(tempfile.mkdtemp(prefix="prefloop-outage-"))  # where PostgreSQL's own user may go
        stack.callback(shutil.rmtree, data, ignore_errors=True)
        database = Postgres(data)
        stack.callback(database.stop)
        database.start()
        broker = Broker(run_folder / "kafka")
        stack.callback(broker.stop)
        broker.start()
        settings = {
            "PREFLOOP_LOG_URL": broker.url,
            "PREFLOOP_GATEWAY__DATABASE_URL": database.create_database("prefloop_gateway"),
        }
        server = Field(folder, run_folder, stack).start_gateway(GATEWAY, settings).server
        admin_key = read_admin_key(run_folder / GATEWAY)
        with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {admin_key}"}, timeout=30) as admin:
            keys = [make_key(admin, name, pairs=True) for name in ("load", "people")]
        peer = Peer(GATEWAY, server, (f"authorization: Bearer {keys[0]}",))
        yield Machine(broker, database, peer, admin_key, People(server.url, keys[1]))


def measure(arguments: argparse.Namespace, machine: Machine, client: Path, run_folder: Path) -> list[Sample]:
    """All rounds; the phases take turns at being first."""
    body = write_body(run_folder)
    samples = []
    phases = list(Phase)
    for number in range(arguments.rounds):
        turn = number % len(phases)
        for phase in phases[turn:] + phases[:turn]:
            seconds = arguments.hung_seconds if phase is Phase.BROKER_HUNG else arguments.seconds
            with machine.suffer(phase):
                samples.append(run_load(client, machine.peer, phase, number, seconds, arguments.rate, body))
            print(render(samples[-1]), flush=True)
    return samples


def run_load(client: Path, peer: Peer, phase: Phase, number: int, seconds: float, rate: int, body: Path) -> Sample:
    """Ask at a fixed rate from the outage's first moment on. Raises LoadFailed."""
    argv = [str(client), str(peer.server.port), *(str(x) for x in (CONNECTIONS, seconds, rate, body)), *peer.headers]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 120)
    try:
        said = json.loads(done.stdout.strip().splitlines()[-1])
        return Sample(phase, number, said["answers"], said["failed"], said["whole_p50_us"], said["whole_p99_us"])
    except (IndexError, KeyError, ValueError) as error:
        raise LoadFailed(f"{phase}: {error}\n{(done.stdout + done.stderr)[-1000:]}") from None


def main() -> int:
    """Run the bench. Returns the exit status: 1 if something is missing, or a completion failed."""
    arguments = parse_arguments()
    folder = (arguments.state_dir / "bench").resolve()
    run_folder = folder / "outage"
    shutil.rmtree(run_folder, ignore_errors=True)
    run_folder.mkdir(parents=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        client = compile_program("client", folder)
        with start_machine(folder, run_folder) as machine:
            people = machine.people
            people.start()
            run_load(client, machine.peer, Phase.ALL_UP, -1, 3.0, arguments.rate, write_body(run_folder))  # warm
            try:
                samples = measure(arguments, machine, client, run_folder)
            finally:
                people.stop()
    except KeyboardInterrupt:
        return 130
    except (MissingTool, KafkaFailed, PostgresError, ServerFailed, LoadFailed, httpx.HTTPError) as error:
        print(f"bench-outage: {error}", file=sys.stderr)
        return 1
    print("people: " + ", ".join(f"{num:,} {what}" for what, num in sorted(people.counts.items())))
    figures = compute_figures(samples)
    figures["failed"] += people.failed
    print(json.dumps(figures), flush=True)
    return int(figures["failed"] > 0)


def write_body(run_folder: Path) -> Path:
    body = run_folder / "body.json"
    body.write_bytes(build_request(stream=False))
    return body


if __name__ == "__main__":
    sys.exit(main())

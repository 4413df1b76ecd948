"""Durable choices a second, and how long they take to be trainable: the whole path, on both databases and both logs.

Every acknowledged choice is looked up in the database afterwards, after a kill -9 of the gateway. One gateway process,
a load in C, no engine. The last line is one JSON object; a figure that was not measured is null, with its reason above.
"""

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from bench.choices.lag import NotTrainable, measure_lag
from bench.choices.stage import open_secrets, run_gateway, show_comparisons, write_requests
from bench.gateway.servers import ServerFailed
from bench.gateway.tools import MissingTool, compile_program
from feedback.choices import NewChoice, choices, count_outbox, record_choices
from feedback.database import Writer, open_database, write_transaction
from feedback.log import open_log
from feedback.relay import Relay
from prefloop.servers.postgres import PostgresError, run_postgres

CLIENTS = (1, 16, 64)
_MOST_PER_S = {1: 1500, 16: 7000, 64: 12_000}  # requests that are prepared for each second


class WrongFigures(Exception):
    """What was acknowledged is not what is stored, or something was refused."""


def main() -> int:
    """Run the bench. Returns the exit status: 1 if something is missing or was lost."""
    arguments = parse_arguments()
    folder = (arguments.state_dir / "bench" / "choices").resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    figures: dict[str, Any] = {}
    reasons: dict[str, str] = {}
    try:
        client = compile_program("client", folder, Path(__file__).parent)
        for kind in ("sqlite", "postgresql"):
            figures[kind] = attempt(lambda kind=kind: measure_choices(kind, folder, client, arguments), kind, reasons)
        figures["relay_per_s"] = round(measure_relay(folder, arguments.relay_rows))
        lags = {
            log: attempt(lambda log=log: find_lag(log, folder, arguments), log, reasons) for log in ("sqlite", "kafka")
        }
    except KeyboardInterrupt:
        return 130
    except (MissingTool, ServerFailed, WrongFigures, NotTrainable) as error:
        print(f"bench-choices: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for share, name in ((0.5, "lag_p50_ms"), (0.99, "lag_p99_ms")):
        figures[name] = {log: None if lag is None else round(pick(lag, share), 1) for log, lag in lags.items()}
    for name, reason in reasons.items():
        print(f"{name} was not measured: {reason}")
    print(json.dumps(figures))
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-choices", description=__doc__)
    parser.add_argument("--state-dir", type=Path, default=Path("state"))
    parser.add_argument("--seconds", type=float, default=4.0, help="of each load")
    parser.add_argument("--relay-rows", type=int, default=20_000)
    parser.add_argument("--lag-choices", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="a look: short loads, few choices")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seconds, arguments.relay_rows, arguments.lag_choices = 1.5, 3000, 80
    return arguments


def attempt(measure: Callable[[], Any], name: str, reasons: dict[str, str]) -> Any:
    """The figure; None with a reason if what it needs is not here."""
    try:
        return measure()
    except (PostgresError, ImportError, MissingTool) as error:
        reasons[name] = str(error)
        return None


def measure_choices(
    kind: str, folder: Path, client: Path, arguments: argparse.Namespace
) -> dict[str, dict[str, float]]:
    """Acknowledged choices a second and their p99, by the number of clients."""
    state = folder / kind
    state.mkdir()
    figures = {}
    with open_url(kind, state) as url:
        secrets = open_secrets(state)
        num_acknowledged = 0
        for num_clients in CLIENTS:
            comparisons = show_comparisons(url, int(arguments.seconds * _MOST_PER_S[num_clients]))
            write_requests(state / "requests", comparisons, secrets)
            with run_gateway(state, url) as gateway:
                seen = run_client(client, gateway.port, num_clients, arguments.seconds, state / "requests")
                gateway.kill()
            num_acknowledged += seen["acknowledged"]
            check_stored(url, num_acknowledged)
            per_s = seen["acknowledged"] / seen["seconds"]
            figures[str(num_clients)] = {"per_s": round(per_s), "p99_ms": round(seen["p99_us"] / 1000, 2)}
            print(f"{kind}, {num_clients} clients: {per_s:,.0f}/s, p99 {seen['p99_us'] / 1000:.1f} ms", flush=True)
    return figures


@contextlib.contextmanager
def open_url(kind: str, state: Path) -> Iterator[str]:
    """An empty database with its server's defaults, or SQLite's file."""
    if kind == "sqlite":
        yield f"sqlite:///{state / 'gateway.db'}"
        return
    with run_postgres() as server:
        yield server.create_database("prefloop_gateway")


def run_client(client: Path, port: int, num_clients: int, seconds: float, requests: Path) -> dict[str, Any]:
    """What the load saw. Raises WrongFigures if anything was refused."""
    argv = [str(client), str(port), str(num_clients), str(seconds), str(requests)]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode:
        raise WrongFigures(f"the load failed: {done.stderr.strip()}")
    seen: dict[str, Any] = json.loads(done.stdout)
    if seen["refused"]:
        raise WrongFigures(f"{seen['refused']} choices were refused: {done.stderr.strip()}")
    return seen


def check_stored(url: str, num_acknowledged: int) -> None:
    """Raises WrongFigures unless every acknowledged choice is stored, once."""
    database = open_database(url)
    with database.connect() as connection:
        num_stored = connection.execute(sa.select(sa.func.count()).select_from(choices)).scalar_one()
    database.dispose()
    if num_stored != num_acknowledged:
        raise WrongFigures(f"{num_acknowledged} choices were acknowledged, {num_stored} are stored")


def measure_relay(folder: Path, num_rows: int) -> float:
    """Rows a second from a full outbox into the embedded log."""
    state = folder / "relay"
    state.mkdir()
    url = f"sqlite:///{state / 'gateway.db'}"
    comparisons = show_comparisons(url, num_rows)
    database, log = open_database(url), open_log(f"sqlite:{state / 'log.db'}")
    for start in range(0, num_rows, 250):
        with write_transaction(database) as connection:
            record_choices(connection, [say_first(each.id) for each in comparisons[start : start + 250]])
    writer = Writer(database)
    relay = Relay(database, writer, log, "prefloop.feedback")
    began = time.monotonic()
    while relay.move_batch():
        pass
    seconds = time.monotonic() - began
    with database.connect() as connection:
        if count_outbox(connection):
            raise WrongFigures("the outbox is not empty")
    writer.close()
    log.close()
    database.dispose()
    print(f"relay: {num_rows / seconds:,.0f} rows/s", flush=True)
    return num_rows / seconds


def say_first(comparison_id: str) -> NewChoice:
    return NewChoice(
        comparison_id=comparison_id, preferred="first", strength=None, harmful=False, channel="api", at=time.time()
    )


def find_lag(log: str, folder: Path, arguments: argparse.Namespace) -> list[float]:
    """Milliseconds from the acknowledgement to the trainer's table, sorted."""
    state = folder / f"lag-{log}"
    state.mkdir()
    with contextlib.ExitStack() as stack:
        url = ""
        if log == "kafka":
            from prefloop.servers.kafka import KafkaFailed, run_kafka

            try:
                url = stack.enter_context(run_kafka(state / "kafka")).url
            except KafkaFailed as error:
                raise MissingTool(str(error)) from error
        lag = measure_lag(state, arguments.lag_choices, url)
    print(f"lag over {log}: p50 {pick(lag, 0.5):.0f} ms, p99 {pick(lag, 0.99):.0f} ms", flush=True)
    return lag


def pick(ordered: list[float], share: float) -> float:
    """A percentile."""
    return ordered[round(share * (len(ordered) - 1))]


if __name__ == "__main__":
    sys.exit(main())

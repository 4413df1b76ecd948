"""Measures the unit costs of units.py on this machine, on loopback, with the pieces of the other benches.

CPU time counts, not time: other work on the machine matters less. The engine is the mock in C of bench-gateway, the
database a real PostgreSQL with its defaults. Takes two minutes.
"""

import os
import platform
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import msgspec
import sqlalchemy as sa

from bench.choices.__main__ import run_client, say_first
from bench.choices.stage import open_secrets, run_gateway, show_comparisons, write_requests
from bench.gateway.loads import PACE_MS, Load, Loads
from bench.gateway.peers import GATEWAY, Field, Peer
from bench.gateway.tools import compile_program, find_wrk
from bench.scale.units import Measured
from feedback.choices import outbox, record_choices, store_comparison
from feedback.database import Writer, create_tables, open_database, write_transaction
from feedback.inbox import metadata
from feedback.log import open_log
from feedback.relay import Relay
from prefloop.servers.postgres import run_postgres
from trainer.run.intake.clusters import place_rows
from trainer.run.intake.consumer import consume_all
from trainer.run.status.metrics import Metrics

_TOPIC = "prefloop.feedback"
_NUM_STREAMS, _SLOW_MS = 900, 500  # so many open streams, each with an event twice a second
_ROWS = 4000
_PER_COMMIT = 20  # choices that share a commit under load


def measure_units(folder: Path, seconds: float) -> Measured:
    """All unit costs; every load lasts `seconds`. Raises MissingTool, ServerFailed, LoadFailed, PostgresError."""
    gateway = _measure_gateway(folder, seconds)
    print(f"gateway: {gateway}", flush=True)
    database = _measure_database(folder, seconds)
    print(f"database: {database}", flush=True)
    log = _measure_log(folder)
    print(f"log and trainer: {log}", flush=True)
    model = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ""
    )
    machine = f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return Measured(machine=machine, **{k: round(v, 1) for k, v in (gateway | database | log).items()})


def _measure_gateway(folder: Path, seconds: float) -> dict[str, float]:
    compile_program("mock", folder)
    client = compile_program("client", folder)
    run_folder = folder / "gateway"
    run_folder.mkdir()
    with ExitStack() as stack:
        field = Field(folder, run_folder, stack)
        peer = field.start_gateway(GATEWAY)
        loads = Loads(find_wrk(folder), client, field.mock.url, run_folder)
        fresh_mb = peer.server.rss_mb()
        open_mb = _hold_streams(client, peer, field, run_folder)
        loads.run(Load.SIXTEEN, peer, 1.0, 0)
        whole = loads.run(Load.SIXTEEN, peer, seconds, 0)
        paced = loads.run(Load.PACED, peer, seconds, 0)
        stored = sum(path.stat().st_size for path in run_folder.rglob("completions.db*"))
        rss_mb = peer.server.rss_mb()
        recorded = whole.answers + paced.answers
    return {
        "request_cpu_us": whole.cpu_us,
        "event_cpu_us": paced.cpu_us,
        "gateway_rss_mb": rss_mb,
        "open_stream_kb": max(0.0, open_mb - fresh_mb) * 1e3 / _NUM_STREAMS,
        "completion_bytes": stored / max(recorded, 1),
    }


def _hold_streams(client: Path, peer: Peer, field: Field, folder: Path) -> float:
    """Resident MB while many streams are open."""
    httpx.post(f"{field.mock.url}/pace/{_SLOW_MS}").raise_for_status()
    body = folder / "stream.json"
    load = subprocess.Popen(
        [str(client), str(peer.server.port), str(_NUM_STREAMS), "8", "0", str(body), *peer.headers],
        stdout=subprocess.DEVNULL,
    )
    try:
        time.sleep(6)
        return peer.server.rss_mb()
    finally:
        load.wait()
        httpx.post(f"{field.mock.url}/pace/{PACE_MS}").raise_for_status()


def _measure_database(folder: Path, seconds: float) -> dict[str, float]:
    state = folder / "database"
    state.mkdir()
    client = compile_program("client", state, Path(__file__).parents[1] / "choices")
    with run_postgres() as server:
        url = server.create_database("prefloop_gateway")
        secrets = open_secrets(state)
        num = int(seconds * 2500)
        shown = show_comparisons(url, num)
        database = open_database(url)
        before = time.process_time()
        again = [msgspec.structs.replace(each, id=f"{each.id}-again") for each in shown[:2000]]
        for start in range(0, len(again), _PER_COMMIT):
            with write_transaction(database) as connection:
                for comparison in again[start : start + _PER_COMMIT]:
                    store_comparison(connection, comparison)
        comparison_cpu_us = (time.process_time() - before) / len(again) * 1e6
        num_rows = len(shown) + len(again)
        comparison_bytes = _size_of(database, "comparisons") / num_rows
        write_requests(state / "requests", shown, secrets)
        with run_gateway(state, url) as gateway:
            before = gateway.cpu_s()
            seen = run_client(client, gateway.port, 64, seconds, state / "requests")
            time.sleep(1.5)  # the relay's part
            choice_cpu_us = (gateway.cpu_s() - before) / seen["acknowledged"] * 1e6
        choice_bytes = _size_of(database, "choices") / seen["acknowledged"]
        database.dispose()
    return {
        "comparison_cpu_us": comparison_cpu_us,
        "comparison_bytes": comparison_bytes,
        "choice_cpu_us": choice_cpu_us,
        "choice_bytes": choice_bytes,
        "choices_per_s": seen["acknowledged"] / seen["seconds"],
    }


def _size_of(database: sa.Engine, table: str) -> float:
    with database.connect() as connection:
        connection.exec_driver_sql("CHECKPOINT")
        return float(connection.execute(sa.text(f"SELECT pg_total_relation_size('{table}')")).scalar_one())


def _measure_log(folder: Path) -> dict[str, float]:
    state = folder / "log"
    state.mkdir()
    url, log_path, trainer_path = f"sqlite:///{state / 'gateway.db'}", state / "log.db", state / "trainer.db"
    shown = show_comparisons(url, _ROWS)
    database, log = open_database(url), open_log(f"sqlite:{log_path}")
    for start in range(0, _ROWS, _PER_COMMIT):
        with write_transaction(database) as connection:
            record_choices(connection, [say_first(each.id) for each in shown[start : start + _PER_COMMIT]])
    with database.connect() as connection:
        stored = sa.func.length(outbox.c.value) + sa.func.length(outbox.c.headers)
        event_bytes = float(connection.execute(sa.select(sa.func.avg(stored))).scalar_one())
    writer = Writer(database)
    relay = Relay(database, writer, log, _TOPIC)
    before = time.process_time()
    while relay.move_batch():
        pass
    relay_cpu_us = (time.process_time() - before) / _ROWS * 1e6
    writer.close()
    database.dispose()
    trainer_database = open_database(f"sqlite:///{trainer_path}")
    create_tables(trainer_database, metadata)
    trainer_writer = Writer(trainer_database)
    trainer_writer.run(lambda connection: place_rows(connection, [])).result()  # whatever is done once
    before, metrics, num_read = time.process_time(), Metrics(), 0
    while num := consume_all(log, _TOPIC, log.partitions(_TOPIC), trainer_database, trainer_writer, 500, metrics):
        num_read += num
    intake_cpu_us = (time.process_time() - before) / _ROWS * 1e6
    assert num_read == _ROWS, num_read
    trainer_writer.close()
    trainer_database.dispose()
    log.close()
    return {
        "relay_cpu_us": relay_cpu_us,
        "event_bytes": event_bytes,
        "intake_cpu_us": intake_cpu_us,
        "inbox_bytes": _whole_size(trainer_path) / _ROWS,
    }


def _whole_size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*") if not each.name.endswith("-shm"))

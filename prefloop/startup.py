"""Starts prefloop on one machine: checks, the seed policy, Kafka and PostgreSQL where asked for, then the services.

What cannot work is refused before anything is started. Shared by `up`, the demo and the measurements.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import httpx
from rich.console import Console

from prefloop import smollm
from prefloop.servers.kafka import KafkaFailed, run_kafka
from prefloop.servers.postgres import PostgresError, run_postgres
from prefloop.services import (
    Layout,
    engine_host,
    engine_service,
    gateway_service,
    scorer_service,
    sync_service,
    trainer_service,
)
from prefloop.supervisor import Supervisor
from prefloop.terminal import CommandFailed

LogKind = Literal["sqlite", "kafka"]
DatabaseKind = Literal["sqlite", "postgresql"]
READY_TIMEOUT_S = 600.0
LINE_PERIOD_S = 10.0  # where there is no terminal to draw on
SEED_POLICY_SEED = 0


class StartFailed(CommandFailed):
    """The machine cannot start; the message says what to do."""


def build_seed_policy(state_dir: Path) -> Path:
    """Build the seed policy once. Returns its directory; a second call returns at once."""
    seed_dir = state_dir / "seed"
    corpus_dir = state_dir / "seed-corpus"
    if (seed_dir / "seed.json").exists():
        return seed_dir
    world = [
        sys.executable,
        "-m",
        "prefloop.demo.worlds.catalogue",
        "--out",
        str(corpus_dir),
        "--seed",
        str(SEED_POLICY_SEED),
    ]
    train = [sys.executable, "-m", "trainer.seed", "--out", str(seed_dir), "--corpus", str(corpus_dir / "corpus.jsonl")]
    train += ["--frozen", str(corpus_dir / "frozen.jsonl")]
    for command in (world, train):
        if subprocess.run(command).returncode:
            raise StartFailed(f"The seed policy could not be built: `{' '.join(command[1:])}` failed.")
    shutil.copyfile(corpus_dir / "examples.json", seed_dir / "examples.json")  # the playground offers them
    return seed_dir


def find_model(name: str, state_dir: Path) -> str:
    """An absolute directory or a hub id; "" for the seed policy. `smollm2` is fetched and converted if it is missing.

    Raises StartFailed for a directory without a model.
    """
    if name == smollm.NAME:
        return str(smollm.build_smollm(state_dir).resolve())
    path = Path(name).expanduser()
    if not name or not (path.is_dir() or name.startswith(("/", ".", "~"))):
        return name
    if not (path / "config.json").is_file():
        raise StartFailed(f"There is no model in {path}: a directory with config.json and weights is needed.")
    return str(path.resolve())


def choose_max_model_len(model: str, asked: int) -> int | None:
    """The engine's context length: as asked for; 1,024 of SmolLM2's 8,192 for the KV cache's sake; None: vLLM's choice."""
    if asked:
        return asked
    return smollm.MAX_MODEL_LEN if (Path(model) / smollm.MARKER).is_file() else None


def check_settings(
    layout: Layout, gateway: dict[str, str] | None = None, trainer: dict[str, str] | None = None
) -> None:
    """Have gateway and trainer read their settings before anything starts. Raises StartFailed with their sentence."""
    services = (("gateway", gateway_service(layout, gateway)), ("trainer", trainer_service(layout, trainer)))
    for package, service in services:
        command, env = [sys.executable, "-m", f"{package}.settings"], {**os.environ, **service.env}
        checked = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True)
        if checked.returncode:
            raise StartFailed(checked.stderr.strip())


def require_free_ports(layout: Layout) -> None:
    """Raises StartFailed if another process listens where one of ours should."""
    ports = [layout.port, layout.port + 2]
    ports += [] if layout.engine_url else [layout.port + 1]
    ports += [layout.port + 3] if layout.has_scorer else []
    ports += [layout.port + 4] if layout.has_sync else []
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                raise StartFailed(f"Port {port} is taken: stop what listens there, or choose others with --port.")


@contextlib.contextmanager
def run_back_ends(layout: Layout, log: LogKind, database: DatabaseKind) -> Iterator[Layout]:
    """Start the broker and the database that are asked for; yields the layout that uses them. Raises StartFailed.

    PostgreSQL's data lies in a temporary folder that its own user can reach, and goes with the block.
    """
    with contextlib.ExitStack() as stack:
        try:
            if log == "kafka":
                broker = stack.enter_context(run_kafka(layout.state_dir / "kafka"))
                layout = replace(layout, log_url=broker.url)
            if database == "postgresql":
                server = stack.enter_context(run_postgres())
                gateway, trainer = (server.create_database(f"prefloop_{name}") for name in ("gateway", "trainer"))
                layout = replace(layout, gateway_database=gateway, trainer_database=trainer)
        except (KafkaFailed, PostgresError) as error:
            raise StartFailed(str(error)) from None
        yield layout


def start_services(
    supervisor: Supervisor, layout: Layout, gateway: dict[str, str] | None = None, trainer: dict[str, str] | None = None
) -> None:
    """Start engine, gateway and trainer, the scorer where there is one, and what fetches checkpoints from a store.

    gateway, trainer: further settings for each, as environment variables.
    """
    if not layout.engine_url:
        supervisor.start(engine_service(layout))
    supervisor.start(gateway_service(layout, gateway))
    supervisor.start(trainer_service(layout, trainer))
    if layout.has_scorer:
        supervisor.start(scorer_service(layout, trainer))
    if layout.has_sync:
        supervisor.start(sync_service(layout))
    if not layout.engine_url:  # else whoever runs that engine runs the others too
        supervisor.run_beside(engine_host(layout, supervisor).run())


async def wait_until_ready(layout: Layout, supervisor: Supervisor, console: Console, stop: asyncio.Event) -> float:
    """Wait for the first checkpoint to serve. Returns the seconds it took; raises StartFailed after ten minutes."""
    started = time.monotonic()
    seen_events, next_line_s = 0, 0.0
    async with httpx.AsyncClient(timeout=2) as client:
        with console.status("Starting the engine (about a minute), the gateway and the trainer …") as status:
            while not stop.is_set():
                waited_s = time.monotonic() - started
                if await is_ready(client, layout.gateway_url):
                    return waited_s
                if waited_s > READY_TIMEOUT_S:
                    raise StartFailed(f"Not ready after {waited_s:.0f} s; look into {layout.state_dir / 'logs'}.")
                events = list(supervisor.events)
                for _, event in events[seen_events:]:
                    console.print(f"[yellow]{event}[/yellow]", highlight=False)
                seen_events = len(events)
                line = f"Starting … {waited_s:.0f} s ({describe_states(supervisor)})"
                status.update(line)
                if not console.is_terminal and waited_s >= next_line_s:
                    console.print(line, highlight=False)
                    next_line_s = waited_s + LINE_PERIOD_S
                await asyncio.sleep(0.25)
    return time.monotonic() - started


async def is_ready(client: httpx.AsyncClient, gateway_url: str) -> bool:
    """Whether the gateway serves a checkpoint."""
    try:
        return (await client.get(gateway_url + "/readyz")).status_code == 200
    except httpx.TransportError:
        return False


def describe_states(supervisor: Supervisor) -> str:
    """One line: which service runs, and which is down."""
    return ", ".join(f"{name} {'runs' if state.is_running else 'is down'}" for name, state in supervisor.states.items())


def stop_on_signals(stop: asyncio.Event) -> None:
    """Set `stop` at Ctrl-C or SIGTERM."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)

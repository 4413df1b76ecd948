"""Serving while a round trains beside it, against idle, on real vLLM: `python -m bench.round_beside_traffic`.

Engine, gateway and trainer are processes as in the demo, with the seed policy, ports and a state directory of their own.
Two idle windows come first; then people choose until the trainer begins a round, and fall silent; the third window is the
round. The last line is one JSON object. Exits 1 if no round began, or it was too short to say anything.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from bench.round_beside_traffic.figures import TooFewRequests, Window, compare, describe_window, find_sampling
from bench.round_beside_traffic.load import Load
from feedback.secret_files import read_admin_key
from prefloop import startup
from prefloop.demo.snapshot import get_json
from prefloop.rounds import BUSY
from prefloop.servers.ports import find_neighbouring_ports
from prefloop.services import Layout, log_path
from prefloop.startup import StartFailed
from prefloop.supervisor import Service, Supervisor

ROOT = Path(__file__).parents[2] / "state"
WARM_UP_S = 5.0
LOOK_S = 0.2


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.round_beside_traffic", description=__doc__)
    parser.add_argument("--choices", type=int, default=600, help="decisive choices that make the round due")
    parser.add_argument("--algorithm", choices=("dpo", "ppo"), default="dpo", help="how the round learns")
    parser.add_argument("--connections", type=int, default=8, help="requests under way at a time")
    parser.add_argument("--idle-s", type=float, default=30.0, help="length of each idle window")
    parser.add_argument(
        "--patience-s", type=float, default=600.0, help="longest wait for the round to begin, and to end"
    )
    parser.add_argument("--state-dir", type=Path, default=ROOT, help="where the seed policy is, or is built")
    return parser.parse_args()


class Bench:
    """One run over services that are up."""

    def __init__(self, arguments: argparse.Namespace, layout: Layout, supervisor: Supervisor, console: Console) -> None:
        self.arguments, self.layout, self.supervisor, self.console = arguments, layout, supervisor, console

    async def run(self, client: httpx.AsyncClient) -> dict[str, Any]:
        """Take the three windows; returns the figures. Raises StartFailed without a round, TooFewRequests."""
        key = await self._create_key(client, "load", pairs=False)
        load = Load(self.layout.gateway_url, key, self.arguments.connections)
        loading = asyncio.create_task(load.run())
        try:
            await asyncio.sleep(WARM_UP_S)
            idle = [await self._wait_idle() for _ in range(2)]
            await self._feed(client)
            during = await self._watch_round(client)
        finally:
            load.stop()
            await loading
        first, second, training = (describe_window(load.answered, window) for window in (*idle, during))
        figures: dict[str, Any] = compare(first, second, training)
        windows = {"idle": asdict(first), "idle_again": asdict(second), "during": asdict(training)}
        ended = await get_json(client, self.layout.trainer_url + "/status") or {}
        return {
            "algorithm": self.arguments.algorithm,
            **figures,
            **windows,
            "failed": load.num_failed,
            "connections": self.arguments.connections,
            "sampling": find_sampling(ended.get("rounds") or []),
        }

    async def _create_key(self, client: httpx.AsyncClient, name: str, pairs: bool) -> str:
        body = {"name": name, "scope": "app", "pairs": pairs}
        created = (await client.post("/operator/v1/keys", json=body)).raise_for_status()
        return str(created.json()["key"])

    async def _wait_idle(self) -> Window:
        began_at = time.monotonic()
        await asyncio.sleep(self.arguments.idle_s)
        return began_at, time.monotonic()

    async def _feed(self, client: httpx.AsyncClient) -> None:
        """Let the demo's people choose until a round begins, then end them."""
        key = await self._create_key(client, "people", pairs=True)
        argv = [sys.executable, "-m", "prefloop.demo.people", "--base-url", self.layout.gateway_url, "--pause-s", "0"]
        argv += ["--stats-file", str(self.layout.state_dir / "people.json")]
        self.supervisor.start(Service("people", argv, log_path(self.layout, "people"), {"PREFLOOP_API_KEY": key}))
        deadline = time.monotonic() + self.arguments.patience_s
        while not await self._is_training(client):
            if time.monotonic() > deadline:
                status = await get_json(client, self.layout.trainer_url + "/status") or {}
                raise StartFailed(f"No round began in {self.arguments.patience_s:.0f} s: {status.get('round')}")
            await asyncio.sleep(LOOK_S)
        await self.supervisor.end("people")

    async def _watch_round(self, client: httpx.AsyncClient) -> Window:
        """From now, when only the load asks, to the round's end."""
        began_at = ended_at = time.monotonic()
        deadline = began_at + self.arguments.patience_s
        while await self._is_training(client) and time.monotonic() < deadline:
            ended_at = time.monotonic()
            await asyncio.sleep(LOOK_S)
        self.console.print(f"the round was watched for {ended_at - began_at:.0f} s", highlight=False)
        return began_at, ended_at

    async def _is_training(self, client: httpx.AsyncClient) -> bool:
        status = await get_json(client, self.layout.trainer_url + "/status") or {}
        return (status.get("round") or {}).get("state") in BUSY


async def run_bench(arguments: argparse.Namespace, layout: Layout, console: Console) -> int:
    """Start everything, measure, stop everything; returns the exit status."""
    supervisor, stop = Supervisor(), asyncio.Event()
    startup.stop_on_signals(stop)
    trainer = {
        "PREFLOOP_TRAINER__ROUND_EVERY_PREFERENCES": str(arguments.choices),
        "PREFLOOP_TRAINER__ROUND": arguments.algorithm,
    }
    startup.start_services(supervisor, layout, None, trainer)
    try:
        await startup.wait_until_ready(layout, supervisor, console, stop)
        headers = {"Authorization": f"Bearer {read_admin_key(layout.state_dir)}"}
        async with httpx.AsyncClient(base_url=layout.gateway_url, timeout=10, headers=headers) as client:
            measuring = asyncio.create_task(Bench(arguments, layout, supervisor, console).run(client))
            stopping = asyncio.create_task(stop.wait())
            await asyncio.wait([measuring, stopping], return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if not measuring.done():
                measuring.cancel()
                return 130
            figures = measuring.result()
    finally:
        await supervisor.stop()
    print(json.dumps(figures), flush=True)
    return 0


def main() -> int:
    arguments, console = parse_arguments(), Console()
    try:
        seed = startup.build_seed_policy(arguments.state_dir)
        run_dir = ROOT / "bench" / "round_beside_traffic"
        shutil.rmtree(run_dir, ignore_errors=True)
        layout = Layout(run_dir, port=find_neighbouring_ports(3), model=str(seed), preset="demo")
        console.print(f"logs: {log_path(layout, 'engine').parent}", highlight=False)
        return asyncio.run(run_bench(arguments, layout, console))
    except (StartFailed, TooFewRequests) as error:
        console.print(f"[red]{error}[/red]")
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""Hot swaps in a row on real vLLM under load: `python -m bench.swap [--swaps 100] [--rollbacks 10] [--connections 64]`.

Starts its own engine and gateway on free ports with a state directory of its own. The last line is one JSON object;
failed, truncated and wrong_checkpoint must be 0; rollback_*_s are the longest times from the
command to the beginning of the last request that the rolled-back checkpoint answered. Does not test several engines or gateways.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import msgspec
import sqlalchemy as sa
from rich.console import Console

from bench.swap.load import Load, Tally
from bench.swap.operating import Operator, wait_until_up
from bench.swap.swaps import Swaps, Timing
from feedback.choices import comparisons
from feedback.database import open_database
from feedback.events import Comparison
from feedback.secret_files import read_admin_key
from prefloop.servers.ports import find_neighbouring_ports
from prefloop.services import Layout, engine_service, gateway_service, log_path
from prefloop.startup import StartFailed, build_seed_policy
from prefloop.supervisor import Supervisor

ROOT = Path(__file__).parents[2] / "state"
SETTLE_S = 3.0  # of load before the first swap and after the last
# Trials end when an operator says so, and the old checkpoint goes as soon as it has drained.
SETTINGS = {
    "PREFLOOP_ROLLOUT__STEPS": '[{"weight": 0.5}]',
    "PREFLOOP_ROLLOUT__DUEL_SHARE": "1.0",
    "PREFLOOP_ROLLOUT__TICK_S": "0.1",
    "PREFLOOP_ROLLOUT__BAKING_S": "2",  # long enough to roll back from
    "PREFLOOP_GATEWAY__COMPARISON_COMMIT_MS": "5000",
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench.swap", description=__doc__)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--rollbacks", type=int, default=10, help="from Baking, and as many from Healthy")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--trial-s", type=float, default=0.5, help="how long both arms serve before each promotion")
    parser.add_argument("--state-dir", type=Path, default=ROOT, help="where the seed policy is, or is built")
    return parser.parse_args()


async def run_swaps(arguments: argparse.Namespace, layout: Layout, adapters: Path, console: Console) -> int:
    """The whole bench but for the training. Returns the exit status."""
    supervisor = Supervisor()
    timings: list[Timing] = []
    rollbacks: dict[str, list[float]] = {"baking": [], "healthy": []}
    async with aiohttp.ClientSession() as session:
        try:
            supervisor.start(engine_service(layout))
            console.print("Starting the engine (about a minute) …")
            await wait_until_up(session, layout.engine_address + "/health", supervisor, "engine")
            supervisor.start(gateway_service(layout, SETTINGS))
            await wait_until_up(session, layout.gateway_url + "/livez", supervisor, "gateway")
            admin_key = read_admin_key(layout.state_dir)
            operator = Operator(layout.gateway_url, admin_key, session)
            swaps = Swaps(operator, adapters, layout.state_dir / "checkpoints", arguments.trial_s)
            await swaps.start()
            body = {"name": "bench", "scope": "app operator", "pairs": True}
            key = (await operator.call("POST", "/operator/v1/keys", body))["key"]
            load = Load(layout.gateway_url, key, arguments.connections)
            loading = asyncio.create_task(load.run())
            started = time.monotonic()
            try:
                await asyncio.sleep(SETTLE_S)
                for number in range(arguments.swaps):
                    timings.append(await swaps.swap(load))
                    show_progress(console, number + 1, arguments.swaps, timings[-1], load.tally, started)
                for number in range(arguments.rollbacks):
                    for phase, seconds in rollbacks.items():
                        seconds.append(await swaps.roll_back(load, phase == "baking"))
                        console.print(
                            f"rollback {number + 1}/{arguments.rollbacks} from {phase}: {seconds[-1] * 1000:.0f} ms; "
                            f"{load.tally.failed} failed",
                            highlight=False,
                        )
                await asyncio.sleep(SETTLE_S)
            finally:
                load.stop()
                await loading
            elapsed_s = time.monotonic() - started
            restarts = sum(state.restarts for state in supervisor.states.values())
        finally:
            await supervisor.stop()
    num_blind = judge_candidates(layout.state_dir, load.tally)
    for line in load.tally.examples:
        console.print(line, markup=False, highlight=False)
    figures = describe(load.tally, timings, elapsed_s, num_blind, restarts)
    figures |= {f"rollback_{phase}_s": round(max(seconds, default=0.0), 3) for phase, seconds in rollbacks.items()}
    print(json.dumps(figures), flush=True)
    return int(any(figures[name] for name in ("failed", "truncated", "wrong_checkpoint")))


def show_progress(console: Console, number: int, total: int, timing: Timing, tally: Tally, started: float) -> None:
    console.print(
        f"swap {number}/{total}: {timing.swap_s * 1000:.0f} ms, old one gone after {timing.retire_s:.1f} s; "
        f"{tally.num_requests} requests ({tally.num_requests / (time.monotonic() - started):.0f}/s), "
        f"{tally.failed} failed, {tally.truncated} truncated, {tally.wrong_checkpoint} wrong, "
        f"longest gap {tally.longest_gap_s * 1000:.0f} ms",
        highlight=False,
    )


def judge_candidates(state_dir: Path, tally: Tally) -> int:
    """Judge both candidates of every recorded comparison by the checkpoint it was recorded with; returns how many."""
    database = open_database(f"sqlite:{state_dir / 'gateway.db'}")
    num = 0
    with database.connect() as connection:
        for row in connection.execute(sa.select(comparisons.c.body)):
            comparison = msgspec.json.decode(row.body, type=Comparison)
            for candidate in (comparison.first, comparison.second):
                tally.note_text(f"candidate of {comparison.id}", candidate.text, candidate.checkpoint)
                num += 1
    database.dispose()
    return num


def describe(
    tally: Tally, timings: list[Timing], elapsed_s: float, num_candidates: int, restarts: int
) -> dict[str, float | int | dict[str, int]]:
    """The figures; milliseconds where the name says so."""
    swap_ms = [timing.swap_s * 1000 for timing in timings] or [0.0]
    retire_ms = [timing.retire_s * 1000 for timing in timings] or [0.0]
    return {
        "swaps": len(timings),
        "requests": tally.num_requests,
        "failed": tally.failed,
        "truncated": tally.truncated,
        "wrong_checkpoint": tally.wrong_checkpoint,
        "longest_gap_ms": round(tally.longest_gap_s * 1000, 1),
        "swap_p50_ms": round(statistics.median(swap_ms), 1),
        "swap_p99_ms": round(quantile(swap_ms, 0.99), 1),
        "retire_p50_ms": round(statistics.median(retire_ms), 1),
        "requests_per_s": round(tally.num_requests / elapsed_s, 1),
        "requests_by_kind": dict(tally.requests),
        "comparisons": tally.comparisons,
        "candidates_judged": num_candidates,
        "checkpoints_seen": len(tally.by_checkpoint),
        "restarts": restarts,
        "seconds": round(elapsed_s, 1),
    }


def quantile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def main() -> int:
    arguments = parse_arguments()
    console = Console()
    seed_dir = build_seed_policy(arguments.state_dir)
    work = ROOT / "bench" / "swap"
    adapters, run_dir = work / "adapters", work / "run"
    if subprocess.run([sys.executable, "-m", "bench.swap.adapters", str(seed_dir), str(adapters)]).returncode:
        return 1
    shutil.rmtree(run_dir, ignore_errors=True)
    layout = Layout(run_dir, port=find_neighbouring_ports(2), model=str(seed_dir), max_model_len=256)
    console.print(f"logs: {log_path(layout, 'engine').parent}", highlight=False)
    try:
        return asyncio.run(run_swaps(arguments, layout, adapters, console))
    except StartFailed as error:
        console.print(f"[red]{error}[/red]")
        return 1


if __name__ == "__main__":
    sys.exit(main())

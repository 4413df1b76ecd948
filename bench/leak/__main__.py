"""Asks a gateway for everything, well and badly, and looks at what it keeps: memory, requests in flight, connections.

Memory is read after a warm-up and at the end, each time once all is quiet. Whether growth is a leak is for the reader
to judge: the interpreter's heap moves by a few MB. The last line is one JSON object.
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import uvloop

from bench.gateway.checkpoints import make_key
from bench.gateway.figures import read_metric
from bench.gateway.peers import GATEWAY, LIMITS, Field
from bench.gateway.servers import Server, ServerFailed
from bench.gateway.tools import MissingTool, compile_program
from bench.leak.load import Load
from feedback.secret_files import read_admin_key

_STEP = 10_000  # requests between two looks
_QUIET_S = 8.0  # idle connections are closed after five seconds
_WAIT_S = 30.0
_SETTINGS = {"PREFLOOP_GATEWAY__COMPARISON_COMMIT_MS": "2000"}


def main() -> int:
    """Run the bench. Returns the exit status: 1 if something is missing, went wrong, or was left behind."""
    arguments = parse_arguments()
    folder = (arguments.state_dir / "bench").resolve()
    run_folder = folder / "leak"
    shutil.rmtree(run_folder, ignore_errors=True)
    run_folder.mkdir(parents=True)
    try:
        with ExitStack() as stack:
            compile_program("mock", folder)
            gateway = Field(folder, run_folder, stack).start_gateway(GATEWAY, _SETTINGS).server
            admin_key = read_admin_key(run_folder / GATEWAY)
            with httpx.Client(base_url=gateway.url, headers={"authorization": f"Bearer {admin_key}"}) as admin:
                keys = [make_key(admin, "bench", pairs=True), make_key(admin, "bench", pairs=True, limits=LIMITS)]
            load = Load(gateway.port, keys, arguments.seed)
            figures = measure(gateway, load, arguments)
    except KeyboardInterrupt:
        return 130
    except (MissingTool, ServerFailed, httpx.HTTPError, TimeoutError) as error:
        print(f"bench-leak: {error}", file=sys.stderr)
        return 1
    print(", ".join(f"{count:,} {kind}" for kind, count in sorted(load.counts.items())))
    for failure, count in load.failures.most_common(20):
        print(f"{count} times {failure}")
    print(json.dumps(figures))
    return 1 if load.failures or figures["in_flight"] or figures["open_connections"] else 0


def parse_arguments() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="make bench-leak ARGS=…", description="What a gateway keeps of its requests.")
    parser.add_argument("--requests", type=int, default=100_000, help="how many, warm-up included")
    parser.add_argument("--warm-up", type=int, default=20_000, help="how many come before memory is read first")
    parser.add_argument("--connections", type=int, default=32, help="how many at once")
    parser.add_argument("--seed", type=int, default=1, help="what is asked, and when, follows from it")
    parser.add_argument("--state-dir", type=Path, default=Path(os.environ.get("PREFLOOP_STATE_DIR", "state")))
    return parser.parse_args()


def measure(gateway: Server, load: Load, arguments: argparse.Namespace) -> dict[str, float | int]:
    """Ask in steps, and look after each."""
    rest(gateway)
    num_connections = len(gateway.connections())  # by which it looks after its engine
    ask(load, arguments.warm_up, arguments.connections)
    rest(gateway)
    start_mb = gateway.rss_mb()
    print(f"after {arguments.warm_up:,} requests: {start_mb:.1f} MB", flush=True)
    for done in range(arguments.warm_up, arguments.requests, _STEP):
        num = min(_STEP, arguments.requests - done)
        ask(load, num, arguments.connections)
        print(f"after {done + num:,} requests: {gateway.rss_mb():.1f} MB", flush=True)
    rest(gateway)
    end_mb = gateway.rss_mb()
    num_open = max(0, len(gateway.connections()) - num_connections)
    return {
        "requests": arguments.requests,
        "rss_start_mb": round(start_mb, 1),
        "rss_end_mb": round(end_mb, 1),
        "rss_growth_mb": round(end_mb - start_mb, 1),
        "in_flight": int(count_in_flight(gateway)),
        "open_connections": num_open,
    }


def ask(load: Load, num_requests: int, num_connections: int) -> None:
    """Run so much of the load."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(load.run(num_requests, num_connections))


def rest(gateway: Server) -> None:
    """Wait until nothing is in flight or waits to be recorded, and idle connections are closed."""
    deadline = time.monotonic() + _WAIT_S
    while count_in_flight(gateway) or read_metric(read_metrics(gateway), "prefloop_completions_pending"):
        if time.monotonic() > deadline:
            break  # the figures say what is left
        time.sleep(0.5)
    time.sleep(_QUIET_S)


def count_in_flight(gateway: Server) -> float:
    """Requests that the gateway is answering, or has sent to an engine."""
    text = read_metrics(gateway)
    return read_metric(text, "prefloop_requests_in_flight") + read_metric(text, "prefloop_engine_requests_in_flight")


def read_metrics(gateway: Server) -> str:
    """The gateway's metrics as text."""
    return httpx.get(f"{gateway.url}/metrics", timeout=30).raise_for_status().text


if __name__ == "__main__":
    sys.exit(main())

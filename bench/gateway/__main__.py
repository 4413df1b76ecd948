"""Measures the gateway beside its peers in one run: every round gives every peer every load, in rotating order.

Pins nothing: on two cores the mock, the load and the peer compete, as on any machine of that size. The Rust router
works on more than one core and would lose by being held to one; mock and load on one core would be the bottleneck.
Prints medians, then one JSON object; a figure that was not measured is null, with its reason above. Does not judge.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import httpx

from bench.gateway.figures import Counts, Samples, compute_figures, read_metric, render_table
from bench.gateway.loads import RATE, Load, LoadFailed, Loads, Sample, check_answers
from bench.gateway.pair import PairFailed, measure_pair_over_single
from bench.gateway.peers import AGAIN, GATEWAY, LITELLM_PEER, Field, Peer
from bench.gateway.servers import Bystanders, ServerFailed
from bench.gateway.tools import MissingTool, compile_program, find_wrk

LOADS = (Load.SIXTEEN, Load.ONE, Load.STREAMS, Load.PACED, Load.FIRST)
SHARES = {Load.FIRST: 0.5}  # of a load's seconds
RECORDED = "prefloop_completions_recorded_total"
DROPPED = "prefloop_completions_dropped_total"
PENDING = "prefloop_completions_pending"
_SETTLE_S = 10.0


def main() -> int:
    """Run the bench. Returns the exit status: 1 if something is missing or a peer failed."""
    arguments = parse_arguments()
    folder = (arguments.state_dir / "bench").resolve()
    run_folder = folder / "run"
    shutil.rmtree(run_folder, ignore_errors=True)
    run_folder.mkdir(parents=True)
    try:
        samples, recorded, rss_mb, reasons = measure(arguments, folder, run_folder)
    except KeyboardInterrupt:
        return 130
    except (MissingTool, ServerFailed, LoadFailed, httpx.HTTPError, TimeoutError) as error:
        print(f"bench-gateway: {error}", file=sys.stderr)
        return 1
    pair_over_single = measure_pair(arguments, run_folder, reasons)
    figures = compute_figures(samples, recorded, rss_mb[GATEWAY], pair_over_single)
    failed = samples.num_failed()
    print(f"medians of {arguments.rounds} rounds of {arguments.seconds:g} s; nothing is pinned")
    print(f"Python {platform.python_version()} of {Path(sys.executable).resolve()}\n")
    print(render_table(samples, rss_mb))
    for name, reason in reasons.items():
        print(f"{name} was not measured: {reason}")
    for peer, num in failed.items():
        print(f"{peer}: {num} requests failed")
    print(json.dumps(figures))
    return 1 if GATEWAY in failed else 0


def parse_arguments() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(prog="make bench-gateway ARGS=…", description="The gateway beside its peers.")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one load")
    parser.add_argument("--quick", action="store_true", help="one round of one second, without LiteLLM and pairs")
    parser.add_argument("--engine", default="", help="a real vLLM for pairs; without it one is started")
    parser.add_argument("--model", default="", help="the directory of the model that --engine serves")
    parser.add_argument("--no-pairs", action="store_true", help="leave out what needs a real vLLM")
    parser.add_argument("--state-dir", type=Path, default=Path(os.environ.get("PREFLOOP_STATE_DIR", "state")))
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.rounds, arguments.seconds = 1, 1.0
    return arguments


def measure(
    arguments: argparse.Namespace, folder: Path, run_folder: Path
) -> tuple[Samples, dict[Load, list[Counts]], dict[str, float], dict[str, str]]:
    """Start every peer, run all rounds, stop them. Returns samples, recorded completions, memory, and what is missing."""
    compile_program("mock", folder)
    loads_client, wrk = compile_program("client", folder), find_wrk(folder)
    reasons: dict[str, str] = {}
    samples: list[Sample] = []
    recorded: dict[Load, list[Counts]] = {}
    with ExitStack() as stack:
        peers = start_peers(arguments, folder, run_folder, stack, reasons)
        loads = Loads(wrk, loads_client, peers[0].server.url, run_folder)
        for peer in peers:
            loads.run(Load.SIXTEEN, peer, 1.0, 0)  # warm
        bystanders = Bystanders([peer.server for peer in peers])
        for number in range(arguments.rounds):
            turn = number % len(peers)
            for peer in peers[turn:] + peers[:turn]:
                done = run_loads(loads, peer, arguments.seconds, number, recorded)
                samples += done
                print(describe_progress(number, arguments.rounds, done), flush=True)
        print(f"\nother processes used {bystanders.share():.0%} of the machine meanwhile", flush=True)
        rss_mb = {peer.name: peer.server.rss_mb() for peer in peers}
    if not any(count.ratio is not None for counts in recorded.values() for count in counts):
        reasons["recorded_ratio"] = f"the gateway has no counter {RECORDED}, or it did not move"
    slowest = min(sample.answers_s for sample in samples if sample.load is Load.RATE)
    if slowest < 0.95 * RATE:
        recorded.pop(Load.RATE)
        reasons["recorded_ratio_2000"] = f"the gateway answered {slowest:,.0f} requests/s of {RATE:,}"
    return Samples(samples), recorded, rss_mb, reasons


def start_peers(
    arguments: argparse.Namespace, folder: Path, run_folder: Path, stack: ExitStack, reasons: dict[str, str]
) -> list[Peer]:
    """All peers that can be had, the mock first; `stack` stops them. `reasons` takes why one cannot."""
    field = Field(folder, run_folder, stack)
    starts = [field.start_mock, field.start_router, field.start_raw_proxy]
    if arguments.quick:
        reasons["ratio_litellm_16"] = "--quick"
    else:
        starts.append(field.start_litellm)
    starts += [lambda: field.start_gateway(GATEWAY), lambda: field.start_gateway(AGAIN)]
    peers = []
    for start in starts:
        peer = start()
        print(f"started {peer.name} on port {peer.server.port}", flush=True)
        check_answers(peer, has_streams=peer.name != LITELLM_PEER)
        peers.append(peer)
    return peers


def run_loads(
    loads: Loads, peer: Peer, seconds: float, number: int, recorded: dict[Load, list[Counts]]
) -> list[Sample]:
    """One peer's turn in a round. `recorded` takes what the gateway counted."""
    if peer.name == LITELLM_PEER:
        return [loads.run(load, peer, seconds, number) for load in (Load.SIXTEEN, Load.ONE)]
    samples = []
    for load in (*LOADS, Load.RATE) if peer.name == GATEWAY else LOADS:
        is_counted = peer.name == GATEWAY and load in (Load.SIXTEEN, Load.RATE)
        before = settle_counts(peer) if is_counted else Counts(0, 0)
        samples.append(loads.run(load, peer, seconds * SHARES.get(load, 1.0), number))
        if is_counted:
            recorded.setdefault(load, []).append(settle_counts(peer) - before)
    return samples


def settle_counts(peer: Peer) -> Counts:
    """The gateway's counters once they stand still and nothing waits to be recorded, or after ten seconds."""
    deadline = time.monotonic() + _SETTLE_S
    seen = None
    while True:
        text = httpx.get(f"{peer.server.url}/metrics", timeout=30).raise_for_status().text
        counts = Counts(read_metric(text, RECORDED), read_metric(text, DROPPED))
        if (counts == seen and not read_metric(text, PENDING)) or time.monotonic() > deadline:
            return counts
        seen = counts
        time.sleep(0.2)


def measure_pair(arguments: argparse.Namespace, run_folder: Path, reasons: dict[str, str]) -> float | None:
    """A pair's wall time over a single answer's, on a real engine; None with a reason."""
    if arguments.quick or arguments.no_pairs:
        reasons["pair_over_single"] = "--quick" if arguments.quick else "--no-pairs"
        return None
    print("pairs on a real engine: starting it takes about a minute", flush=True)
    try:
        return measure_pair_over_single(arguments.state_dir, run_folder, arguments.engine, arguments.model)
    except PairFailed as error:
        reasons["pair_over_single"] = str(error)
        return None


def describe_progress(number: int, num_rounds: int, samples: list[Sample]) -> str:
    """One line about one peer's turn."""
    said = {Load.SIXTEEN: "req/s", Load.ONE: "us p50", Load.STREAMS: "events/s", Load.PACED: "us/event paced"}
    values = {
        Load.SIXTEEN: lambda s: s.answers_s,
        Load.ONE: lambda s: s.whole_p50_us,
        Load.STREAMS: lambda s: s.events_s,
        Load.PACED: lambda s: s.cpu_us,
    }
    parts = [f"{values[sample.load](sample):,.0f} {said[sample.load]}" for sample in samples if sample.load in said]
    return f"round {number + 1}/{num_rounds}  {samples[0].peer:<20} {', '.join(parts)}"


if __name__ == "__main__":
    sys.exit(main())

"""One gateway over one, two and three engines found by DNS: `python -m bench.engines`.

The engines are mocks that cost nothing, so the gateway is what is measured: requests a second by number of engines, in
interleaved rounds; each engine's share of them; the seconds until a killed engine is out, with and without traffic, until it is
back, and until an engine that got a DNS record is used. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
from pathlib import Path
from statistics import median

from bench.engines.machine import HOSTS, Machine, serves, start_machine
from bench.gateway.servers import ServerFailed
from bench.gateway.tools import MissingTool, compile_program, find_wrk

_NUMBERS = (1, 2, 3)
_TRIALS = 5


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='make bench-engines ARGS="…"', description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one load")
    parser.add_argument("--state-dir", type=Path, default=Path(os.environ.get("PREFLOOP_STATE_DIR", "state")))
    return parser.parse_args()


async def measure(arguments: argparse.Namespace, machine: Machine, wrk: list[str]) -> dict[str, object]:
    """All figures."""
    rates: dict[int, list[float]] = {number: [] for number in _NUMBERS}
    unfair: list[float] = []
    failed = 0.0
    await machine.load(wrk, 2)  # warms up
    for round_number in range(arguments.rounds):
        for turn in range(len(_NUMBERS)):
            number = _NUMBERS[(round_number + turn) % len(_NUMBERS)]
            hosts = HOSTS[:number]
            await machine.use(*hosts)
            before = [await machine.count(host) for host in hosts]
            sample = await machine.load(wrk, arguments.seconds)
            answered = [await machine.count(host) - num for host, num in zip(hosts, before, strict=True)]
            rates[number].append(sample["answers"] / sample["seconds"])
            failed += sample["failed"]
            unfair.append(max(abs(num * number / sum(answered) - 1) for num in answered))
            print(f"{number} engines: {rates[number][-1]:.0f}/s, shares {answered}", flush=True)
    out_idle = [await measure_death(machine) for _ in range(_TRIALS)]
    loading = asyncio.create_task(machine.load(wrk, 6 * _TRIALS))
    await asyncio.sleep(1)
    out_busy = [await measure_death(machine) for _ in range(_TRIALS)]
    failed += (await loading)["failed"]
    found = [await measure_record(machine) for _ in range(_TRIALS)]
    ratios = {
        number: median(some / one for some, one in zip(rates[number], rates[1], strict=True)) for number in _NUMBERS
    }
    spread = max(abs(rate / median(rates[1]) - 1) for rate in rates[1])
    return {
        "requests_s": {str(number): round(median(rates[number])) for number in _NUMBERS},
        "ratio_to_one": {str(number): round(ratios[number], 3) for number in _NUMBERS},
        "noise": round(spread, 3),  # of one engine's rounds around their median
        "worst_share_off": round(max(unfair), 3),
        "failed": int(failed),
        "out_s_idle": round(max(each[0] for each in out_idle), 2),
        "out_s_busy": round(max(each[0] for each in out_busy), 2),
        "back_s": round(max(each[1] for each in (*out_idle, *out_busy)), 2),
        "new_record_s": round(max(found), 2),
    }


async def measure_death(machine: Machine) -> tuple[float, float]:
    """Seconds from a kill -9 until the engine is out, and from its new start until it serves again."""
    host = HOSTS[-1]
    await machine.use(*HOSTS)
    machine.kill_mock(host)
    out_s = await machine.time_until(lambda rows: not serves(rows[host]))
    await asyncio.sleep(0.5)
    machine.start_mock(host)
    return out_s, await machine.time_until(lambda rows: serves(rows[host]))


async def measure_record(machine: Machine) -> float:
    """Seconds from an engine's DNS record until it is used."""
    await machine.use(*HOSTS[:2])
    machine.name(*HOSTS)
    return await machine.time_until(lambda rows: HOSTS[2] in rows and serves(rows[HOSTS[2]]))


async def run_bench(arguments: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Start, measure, stop."""
    mock, wrk = compile_program("mock", folder), find_wrk(folder)
    run = folder / "engines"
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir()
    async with start_machine(run, mock) as machine:
        return await measure(arguments, machine, wrk)


def main() -> int:
    """Run, and return the exit status."""
    arguments = parse_arguments()
    folder = (arguments.state_dir / "bench").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = asyncio.run(run_bench(arguments, folder))
    except (MissingTool, ServerFailed, RuntimeError, TimeoutError) as error:
        print(f"engines: {error!r}", file=sys.stderr)
        return 1
    print(json.dumps(figures), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

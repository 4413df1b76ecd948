"""What a team starts with, on the whole road: `python -m bench.backlog [--rows 60000]`, imported, taken in, learnt and trained on.

Engine, gateway and trainer run as `prefloop up` starts them, on default settings and the seed policy; the commands are an
operator's: `prefloop feedback import`, `prefloop round run`. Each phase prints its seconds and its peak memory; the last line is
one JSON object. Seconds are wall time where `_cpu_s` is not said.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console

from prefloop import startup
from prefloop.demo.report import BYTES_PER_MB
from prefloop.rounds import BUSY
from prefloop.servers.ports import find_neighbouring_ports
from prefloop.services import Layout, log_path
from prefloop.startup import StartFailed
from prefloop.supervisor import Supervisor

ROOT = Path(__file__).parents[2] / "state"
LOOK_S = 0.5
STYLES = ("", "Well, I think so: ", "As you surely know, ", "The answer is simple: ")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog='make bench-backlog ARGS="…"', description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patience-s", type=float, default=3600.0, help="longest wait for a phase")
    parser.add_argument("--state-dir", type=Path, default=ROOT, help="where the seed policy is, or is built")
    return parser.parse_args()


def write_rows(path: Path, num_rows: int, seed: int, words: list[str]) -> None:
    """Rows of a preference dataset in the seed policy's words; in 85% of them the shorter answer was chosen."""
    rng = random.Random(seed)

    def say(least: int, most: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(least, most)))

    def rows() -> Iterator[dict[str, str]]:
        for _ in range(num_rows):
            answers = sorted((rng.choice(STYLES) + say(2, 16) + "." for _ in range(2)), key=len)
            if rng.random() > 0.85:
                answers.reverse()
            yield {"prompt": f"What about {say(4, 12)}?", "chosen": answers[0], "rejected": answers[1]}

    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows())


def read_words(corpus: Path) -> list[str]:
    """The words of the seed policy's corpus."""
    text = corpus.read_text(encoding="utf-8")[:400_000]
    return sorted({word for word in text.replace('"', " ").split() if word.isalpha()})


@dataclass
class Phase:
    """What one phase took: wall seconds, CPU seconds of the process that works, its peak of memory in megabytes."""

    seconds: float
    cpu_s: float
    peak_mb: float


class Backlog:
    """One run over services that are up."""

    def __init__(self, arguments: argparse.Namespace, layout: Layout, console: Console) -> None:
        self.arguments, self.layout, self.console = arguments, layout, console
        self.trainer = next(
            process for process in psutil.Process().children(recursive=True) if "trainer.main" in process.cmdline()
        )

    async def run(self, rows: Path) -> dict[str, Any]:
        """Every phase in order. Raises StartFailed for one that fails or does not end."""
        phases = {"import": await asyncio.to_thread(self._import, rows)}
        phases["intake"] = await self._watch("intake", lambda status: self._is_taken_in(status))
        phases["reward"] = await self._watch("reward pass", self._has_learnt)
        self._ask_for_round()
        phases["round"] = await self._watch("round", lambda status: bool(status["rounds"]))
        ended = self._read_status()["rounds"][-1]
        return {
            "rows": self.arguments.rows,
            **{f"{name}_s": round(phase.seconds, 1) for name, phase in phases.items()},
            **{f"{name}_cpu_s": round(phase.cpu_s, 1) for name, phase in phases.items()},
            **{f"{name}_peak_mb": round(phase.peak_mb) for name, phase in phases.items()},
            "reward_accuracy": self._read_status()["reward"]["prequential_accuracy"],
            "round_outcome": ended["outcome"],
            "round_reason": ended["reason"],
        }

    def _import(self, rows: Path) -> Phase:
        argv = [sys.executable, "-m", "prefloop.cli", "feedback", "import", str(rows)]
        argv += ["--state-dir", str(self.layout.state_dir)]
        began_at = time.monotonic()
        process = subprocess.Popen(argv)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise StartFailed("The import failed.")
        cpu_s = usage.ru_utime + usage.ru_stime
        return self._say("import", Phase(time.monotonic() - began_at, cpu_s, usage.ru_maxrss * 1024 / BYTES_PER_MB))

    async def _watch(self, name: str, is_done: Callable[[dict[str, Any]], bool]) -> Phase:
        """Wait for the trainer, and measure it meanwhile."""
        began_at, began_cpu, peak, said_at = time.monotonic(), self._cpu_s(), 0.0, 0.0
        while not is_done(status := self._read_status()):
            peak = max(peak, self.trainer.memory_info().rss / BYTES_PER_MB)
            if time.monotonic() - began_at > self.arguments.patience_s:
                raise StartFailed(f"The {name} did not end in {self.arguments.patience_s:.0f} s: {status['round']}")
            if time.monotonic() - said_at > 30:
                said_at = time.monotonic()
                shown = {key: status["round"][key] for key in ("state", "reason", "progress", "seconds_left")}
                self.console.print(f"{name}: {shown}, {status['uses']}", highlight=False)
            await asyncio.sleep(LOOK_S)
        return self._say(name, Phase(time.monotonic() - began_at, self._cpu_s() - began_cpu, peak))

    def _say(self, name: str, phase: Phase) -> Phase:
        self.console.print(
            f"{name}: {phase.seconds:.1f} s, {phase.cpu_s:.1f} s of CPU, {phase.peak_mb:.0f} MB", highlight=False
        )
        return phase

    def _cpu_s(self) -> float:
        times = self.trainer.cpu_times()
        return float(times.user + times.system)

    def _read_status(self) -> dict[str, Any]:
        for _ in range(60):
            try:
                return dict(httpx.get(self.layout.trainer_url + "/status", timeout=10).json())
            except (httpx.HTTPError, ValueError):
                time.sleep(1.0)
        raise StartFailed("The trainer does not answer.")

    def _is_taken_in(self, status: dict[str, Any]) -> bool:
        return status["lag"] == 0 and status["preferences"] >= self.arguments.rows

    def _has_learnt(self, status: dict[str, Any]) -> bool:
        return status["uses"].get("waiting", 0) == 0 and status["reward"]["version"] > 0 and not self._is_busy(status)

    def _is_busy(self, status: dict[str, Any]) -> bool:
        return status["round"]["state"] in BUSY

    def _ask_for_round(self) -> None:
        httpx.post(self.layout.trainer_url + "/rounds", json={}, timeout=10).raise_for_status()


async def run_bench(arguments: argparse.Namespace, layout: Layout, console: Console) -> dict[str, Any]:
    """Start everything, measure, stop everything."""
    supervisor, stop = Supervisor(), asyncio.Event()
    startup.stop_on_signals(stop)
    never = {"PREFLOOP_TRAINER__ROUND_EVERY_PREFERENCES": "1000000000", "PREFLOOP_TRAINER__ROUND_EVERY_MINUTES": "0"}
    startup.start_services(supervisor, layout, None, never)  # the round is the one that is asked for
    try:
        await startup.wait_until_ready(layout, supervisor, console, stop)
        rows = layout.state_dir / "rows.jsonl"
        write_rows(
            rows, arguments.rows, arguments.seed, read_words(arguments.state_dir / "seed-corpus" / "corpus.jsonl")
        )
        measuring = asyncio.create_task(Backlog(arguments, layout, console).run(rows))
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([measuring, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not measuring.done():
            measuring.cancel()
            raise StartFailed("Stopped before its end.")
        return measuring.result()
    finally:
        await supervisor.stop()


def main() -> int:
    arguments, console = parse_arguments(), Console()
    try:
        seed = startup.build_seed_policy(arguments.state_dir)
        run_dir = ROOT / "bench" / "backlog"
        shutil.rmtree(run_dir, ignore_errors=True)
        layout = Layout(run_dir, port=find_neighbouring_ports(3), model=str(seed))
        console.print(f"logs: {log_path(layout, 'engine').parent}", highlight=False)
        print(json.dumps(asyncio.run(run_bench(arguments, layout, console))), flush=True)
    except StartFailed as error:
        console.print(f"[red]{error}[/red]")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

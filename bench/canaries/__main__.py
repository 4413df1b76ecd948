"""Bad canaries on real vLLM, each of which must be stopped by the gate that is meant for it: `python -m bench.canaries`.

Rude, slow, failing (single answers, streams), rambling, refusing, flattering and wrong; turning bad only while an approval is
awaited, or while it bakes; and a good one, which must be promoted after approval. Last the good one again, before a gateway
that measures the divergence from stable with a margin below its own: it must be stopped for that, though people prefer it.
Everything goes over HTTP; the engine is behind a proxy that makes requests fail or wait. The last line is one JSON object:
`failed` counts clients' requests without a usable answer and must be 0; streams that broke after their first bytes are
`interrupted`, which no gateway can mend.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console

from bench.canaries.adapters import FLATTERY
from bench.canaries.crowd import Crowd, Tally
from bench.canaries.faulty_engine import Fault, FaultyEngine
from bench.swap.operating import Operator, OperatorFailed, publish_copy, wait_until_up
from feedback.secret_files import read_admin_key
from prefloop.demo.worlds.capitals import classify
from prefloop.servers.ports import find_neighbouring_ports
from prefloop.services import Layout, engine_service, gateway_service, log_path
from prefloop.startup import StartFailed, build_seed_policy
from prefloop.supervisor import Supervisor

ROOT = Path(__file__).parents[2] / "state"
PATIENCE_S = 400.0
LOOK_S = 0.3
SETTINGS = {
    "PREFLOOP_ROLLOUT__AUTO_APPROVE": "false",
    "PREFLOOP_ROLLOUT__STEPS": '[{"weight": 0.5}]',
    "PREFLOOP_ROLLOUT__MAX_S": "240",
    "PREFLOOP_ROLLOUT__ACCEPT_TRIPWIRES": "[]",
    "PREFLOOP_GATEWAY__COMPARISON_COMMIT_MS": "5000",
}
MEASURED = {  # in place of the preset's, which measures nothing; the good one is some .34 nats a token from stable
    "PREFLOOP_ROLLOUT__KL__SHARE": "1",
    "PREFLOOP_ROLLOUT__KL__MARGIN": "0.15",
    "PREFLOOP_ROLLOUT__KL__MAX_PER_S": "4",
    "PREFLOOP_ROLLOUT__ACCEPT_BLIND": '["harm"]',
}
STYLES = {"complete": 1.0, "terse": 0.5, "hedging": 0.0, "rude": -1.0, "wrong": -1.0}


def like_well(question: str, text: str) -> float:
    """Right and kind."""
    return STYLES[classify(question, text)]


def like_much(question: str, text: str) -> float:
    """The longer the better."""
    return float(len(text.split()))


def like_flattery(question: str, text: str) -> float:
    """To be praised, whether or not the answer is right."""
    return float(text.startswith(tuple(words.strip() for words in FLATTERY)))


def like_nothing(question: str, text: str) -> float:
    """One is as good as the other."""
    return 0.0


@dataclass(frozen=True)
class Case:
    """One canary. begins: when its fault does. reasons: those one of which stops it; words: what its verdict says.

    is_measured: it is played before a gateway and an engine of its own, with MEASURED.
    """

    name: str
    adapter: str
    like: Callable[[str, str], float]
    reasons: frozenset[str]
    fault: Fault = ""
    begins: str = "Progressing"
    words: tuple[str, ...] = ()
    is_measured: bool = False


CASES = [
    Case("rude", "rude", like_well, frozenset({"Inferior"})),
    Case("slow", "good", like_well, frozenset({"Latency"}), "slow"),
    Case("single answers fail", "good", like_well, frozenset({"Errors"}), "single fails"),
    Case("streams fail", "good", like_well, frozenset({"Errors"}), "stream fails"),
    Case("rambling", "rambling", like_much, frozenset({"Tripwire"}), words=("longer",)),
    Case("refusing", "refusing", like_nothing, frozenset({"Refusals"})),
    Case("flattering and wrong", "flattering", like_flattery, frozenset({"Tripwire"}), words=("flatter",)),
    Case("fails while it waits", "good", like_well, frozenset({"Errors"}), "all fail", "WaitingPromotion"),
    Case("fails while it bakes", "good", like_well, frozenset({"Errors"}), "all fail", "Baking"),
    Case("good", "good", like_well, frozenset()),
    Case("good and far", "good", like_well, frozenset({"KL"}), is_measured=True),
]


@dataclass(frozen=True)
class Ended:
    """How a case ended. is_right: as it must."""

    name: str
    phase: str
    reason: str
    verdict: str
    seconds: float
    is_right: bool


class Trials:
    """The operator of one run: registers canaries, approves what waits, and says how each ended."""

    def __init__(
        self, operator: Operator, crowd: Crowd, engine: FaultyEngine, adapters: Path, root: Path, stable: str
    ) -> None:
        self._operator, self._crowd, self._engine = operator, crowd, engine
        self._adapters, self._root, self._stable = adapters, root, stable
        self._number = 0

    async def run(self, case: Case) -> Ended:
        """Play one case to its end."""
        self._number += 1
        self._crowd.like = case.like
        path = await asyncio.to_thread(
            publish_copy, self._adapters / case.adapter, self._root, self._number, self._stable
        )
        self._engine.checkpoint, self._engine.fault = path.name, ""
        began_at = time.monotonic()
        await self._operator.register(path)
        while True:
            view = await self._find_rollout(path.name)
            if view is not None:
                if case.fault and view["phase"] == case.begins:
                    self._engine.fault = case.fault
                if view["phase"] in ("Healthy", "Degraded"):
                    break
                if view["phase"] == "Paused":
                    await self._operator.act(view["id"], "abort", {"note": "bench: paused by a guardrail"})
                    break
                if view["phase"] == "WaitingPromotion" and case.begins != "WaitingPromotion":
                    await self._approve(view)
            if time.monotonic() - began_at > PATIENCE_S:
                raise StartFailed(f"{case.name} does not end: {json.dumps(view)[:2000]}")
            await asyncio.sleep(LOOK_S)
        self._engine.fault = ""
        await self._operator.wait_for_status(f"{case.name} is over", lambda status: status["rollout"] is None)
        is_right = view["phase"] == "Healthy" if not case.reasons else self._is_stopped(case, view)
        return Ended(
            case.name, view["phase"], view["reason"], view["verdict_sentence"], time.monotonic() - began_at, is_right
        )

    def _is_stopped(self, case: Case, view: dict[str, Any]) -> bool:
        said = view["verdict_sentence"].lower()
        return (
            view["phase"] != "Healthy" and view["reason"] in case.reasons and all(word in said for word in case.words)
        )

    async def _find_rollout(self, checkpoint: str) -> dict[str, Any] | None:
        rows = (await self._operator.call("GET", "/operator/v1/rollouts"))["data"]
        return next((dict(row) for row in rows if row["checkpoint"] == checkpoint), None)

    async def _approve(self, view: dict[str, Any]) -> None:
        body = {"decision_digest": view["decision_digest"], "generation": view["generation"]}
        await self._operator.act(view["id"], "approve", body)


async def play(
    layout: Layout, engine_port: int, adapters: Path, cases: list[Case], settings: dict[str, str], console: Console
) -> tuple[list[Ended], Tally]:
    """Start everything, play the cases, stop everything."""
    supervisor = Supervisor()
    ended: list[Ended] = []
    real = replace(layout, port=engine_port - 1, engine_url="")
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        proxy = FaultyEngine(real.engine_address, session)
        try:
            supervisor.start(engine_service(real))
            console.print("Starting the engine (about a minute) …")
            await wait_until_up(session, real.engine_address + "/health", supervisor, "engine")
            await proxy.start(int(layout.engine_address.rsplit(":", 1)[1]))
            supervisor.start(gateway_service(layout, settings))
            await wait_until_up(session, layout.gateway_url + "/livez", supervisor, "gateway")
            admin_key = read_admin_key(layout.state_dir)
            operator = Operator(layout.gateway_url, admin_key, session)
            checkpoints = layout.state_dir / "checkpoints"
            stable = await operator.start_first(publish_copy(adapters / "stable", checkpoints, 0, None))
            created = await operator.call(
                "POST", "/operator/v1/keys", {"name": "people", "scope": "app", "pairs": True}
            )
            crowd = Crowd(layout.gateway_url, created["key"], session)
            asking = asyncio.create_task(crowd.run())
            trials = Trials(operator, crowd, proxy, adapters, checkpoints, stable)
            try:
                for case in cases:
                    ended.append(await trials.run(case))
                    show(console, ended[-1], crowd)
            finally:
                asking.cancel()
                await asyncio.gather(asking, return_exceptions=True)
        finally:
            await supervisor.stop()
            await proxy.stop()
    return ended, crowd.tally


def summarise(ended: list[Ended], tallies: list[Tally], seconds: float) -> int:
    """Print the last line; returns the exit status."""
    bad = [one for one in ended if one.name != "good"]
    figures = {
        "stopped": sum(one.is_right for one in bad),
        "num_bad": len(bad),
        "good_promoted": sum(one.is_right for one in ended if one.name == "good"),
        **{
            name: sum(getattr(one, name) for one in tallies)
            for name in ("requests", "failed", "interrupted", "choices")
        },
        "reasons": {one.name: one.reason for one in ended},
        "seconds": round(seconds),
    }
    print(json.dumps(figures), flush=True)
    return int(not all(one.is_right for one in ended) or bool(figures["failed"]))


def show(console: Console, one: Ended, crowd: Crowd) -> None:
    console.print(
        f"{one.name}: {'as it must' if one.is_right else 'WRONG'}, {one.phase} ({one.reason}) after {one.seconds:.0f} s: "
        f"{one.verdict}\n  {crowd.tally}",
        highlight=False,
        markup=False,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog='make bench-canaries ARGS="…"', description=__doc__)
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--state-dir", type=Path, default=ROOT, help="where the seed policy is, or is built")
    arguments = parser.parse_args()
    console = Console()
    seed_dir = build_seed_policy(arguments.state_dir)
    work = ROOT / "bench" / "canaries"
    adapters, run_dir = work / "adapters", work / "run"
    if subprocess.run([sys.executable, "-m", "bench.canaries.adapters", str(seed_dir), str(adapters)]).returncode:
        return 1
    chosen = [case for case in CASES if not arguments.only or case.name in arguments.only]
    ended: list[Ended] = []
    tallies: list[Tally] = []
    began_at = time.monotonic()
    try:
        for is_measured, settings in ((False, SETTINGS), (True, SETTINGS | MEASURED)):
            if not (cases := [case for case in chosen if case.is_measured == is_measured]):
                continue
            shutil.rmtree(run_dir, ignore_errors=True)
            port = find_neighbouring_ports(4)
            engine_url = f"http://127.0.0.1:{port + 1}"
            layout = Layout(run_dir, port=port, model=str(seed_dir), preset="demo", engine_url=engine_url)
            console.print(f"logs: {log_path(layout, 'engine').parent}", highlight=False)
            found, tally = asyncio.run(play(layout, port + 3, adapters, cases, settings, console))
            ended += found
            tallies.append(tally)
        return summarise(ended, tallies, time.monotonic() - began_at)
    except (StartFailed, OperatorFailed) as error:
        console.print(f"[red]{error}[/red]")
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""One run of a fleet: people talk, a round trains, its checkpoint is promoted, while processes die and a link is cut.

The order and the moments of the faults follow from the seed. Nothing waits for an engine that was killed, which takes as long as
it takes; the run ends when the promotion has come, every fault has happened and everything is up again and at rest.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import aiohttp

from bench.chaos.checker import find_doubled, find_lost
from bench.chaos.clients import History
from bench.chaos.evidence import gather
from bench.chaos.run import MissedGoal, say
from bench.fleet.people import People
from bench.fleet.stage import ENGINES, GATEWAYS, Stage, set_up
from prefloop.demo.report import count_rollouts
from prefloop.demo.tastes import DEFAULT_TASTE, find_tastes, load_tastes

CUT_S = 20.0
_NEAR_KILL_S = 15.0  # a stream that breaks so soon after a kill was the victim's
_RESTART_S = 1.0
_PROGRESS_S = 10.0
_START_TIMEOUT_S = 1800.0
_REST_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Run:
    """What the command line asked for."""

    seed: int
    seats: int
    pause_s: float
    gap_s: float
    timeout_s: float
    is_real: bool
    round_every: int
    is_hasty: bool
    folder: Path
    seed_policy: Path


@dataclass
class Faults:
    """What was done and when, in epoch seconds; recovery_s: from a kill until its service was back."""

    kills: list[tuple[float, str]] = field(default_factory=list)
    cuts: list[tuple[float, str]] = field(default_factory=list)
    recovery_s: dict[str, float] = field(default_factory=dict)

    def find_kill(self, at: float) -> str | None:
        """The gateway or engine that was killed just before."""
        near = [name for when, name in self.kills if 0 <= at - when <= _NEAR_KILL_S and name != "broker"]
        return near[-1] if near else None


async def run_fleet(run: Run) -> tuple[dict[str, object], list[str]]:
    """The figures, and a sentence for every promise that broke. Raises MissedGoal, KafkaFailed, PostgresError, S3Failed."""
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session,
        set_up(
            run.folder, run.seed_policy, run.seed, session, is_real=run.is_real, round_every=run.round_every
        ) as stage,
    ):
        return await Play(run, stage).play()


class Play:
    """One run on one stage."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self._run, self._stage, self._rng = run, stage, random.Random(f"fleet-{run.seed}")
        self._history = History(run.folder / "people.jsonl")
        self._faults = Faults()
        self._recovering: list[asyncio.Task[None]] = []
        self._started = time.monotonic()
        self._promotions = 0

    async def play(self) -> tuple[dict[str, object], list[str]]:
        await self._start_all()
        people = People(
            self._stage.balancer.url, await self._stage.make_key(), load_tastes(find_tastes(DEFAULT_TASTE)), self._history,
            self._faults.find_kill, seats=self._run.seats, pause_s=self._run.pause_s, seed=self._run.seed,
        )  # fmt: skip
        watching = asyncio.create_task(self._watch(people))
        asking = asyncio.create_task(people.run())
        try:
            await self._hurt()
            await self._wait_for("a promotion", self._is_promoted, self._run.timeout_s)
            await asyncio.gather(*self._recovering)
            say("promoted, and every process is up again; nobody asks any more")
            people.stop()
            await asyncio.wait_for(asking, _REST_TIMEOUT_S)
            await self._wait_for("an empty outbox and log", self._is_drained, _REST_TIMEOUT_S)
        finally:
            for task in (watching, asking, *self._recovering):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
        return await self._conclude(people)

    async def _start_all(self) -> None:
        victims = self._stage.victims
        await victims["broker"].start()
        await self._wait_for("broker", victims["broker"].is_up, _START_TIMEOUT_S)
        others = [name for name in victims if name not in (*ENGINES, "broker")]
        for name in others:
            say(f"starting {name}")
            await victims[name].start()
        for name in ENGINES:
            say(f"starting {name}")
            await victims[name].start()
            if not self._run.is_hasty:  # each takes all of two cores while it starts
                await self._wait_for(name, partial(self._stage.answers, name), _START_TIMEOUT_S)
        for name in (*GATEWAYS, "trainer", *ENGINES):
            await self._wait_for(name, victims[name].is_up, _START_TIMEOUT_S)

    # -- what goes wrong

    async def _hurt(self) -> None:
        """Each fault once, in an order and with pauses that the seed says."""
        gateway, other = self._rng.sample(GATEWAYS, 2)
        engine = self._rng.choice(ENGINES)
        acts: list[Callable[[], Awaitable[None]]] = [
            lambda: self._kill(gateway),
            lambda: self._kill(engine, waits=False),
            lambda: self._kill("broker"),
            lambda: self._cut(other),
        ]
        self._rng.shuffle(acts)
        for act in acts:
            await asyncio.sleep(self._rng.uniform(0.5, 1.5) * self._run.gap_s)
            await act()

    async def _kill(self, name: str, *, waits: bool = True) -> None:
        victim = self._stage.victims[name]
        assert await victim.kill(), f"{name} did not run"
        self._faults.kills.append((time.time(), name))
        say(f"killed {name}")
        recovering = asyncio.create_task(self._recover(name, time.monotonic()))
        self._recovering.append(recovering)
        if waits:
            await recovering

    async def _recover(self, name: str, killed_at: float) -> None:
        victim = self._stage.victims[name]
        await asyncio.sleep(_RESTART_S)
        await victim.start()
        await self._wait_for(name, victim.is_up, _START_TIMEOUT_S)
        self._faults.recovery_s[name] = round(time.monotonic() - killed_at, 1)
        say(f"{name} is back after {self._faults.recovery_s[name]:.0f} s")

    async def _cut(self, gateway: str) -> None:
        link = self._stage.links[gateway]
        num_before = link.num_stopped
        say(f"cutting the link between {gateway} and the database for {CUT_S:.0f} s")
        self._faults.cuts.append((time.time(), gateway))
        await link.cut(CUT_S)
        assert link.num_stopped > num_before, "nothing went over the link that was cut"

    # -- what is waited for

    async def _is_promoted(self) -> bool:
        rollouts = (await self._stage.read_gateway(GATEWAYS[0], "rollouts")).get("data")
        if rollouts:
            self._promotions = count_rollouts(rollouts).promotions
        return self._promotions > 0

    async def _is_drained(self) -> bool:
        status, trainer = await asyncio.gather(self._stage.read_gateway(GATEWAYS[0]), self._stage.read_trainer())
        if not (status and trainer):
            return False
        num_known = sum(trainer.get("uses", {}).values())
        is_empty = bool(status["counters"]["outbox_pending"] == 0 and trainer["lag"] == 0)
        return is_empty and num_known >= len(self._history.acknowledged)

    async def _wait_for(self, what: str, is_true: Callable[[], Awaitable[bool]], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not await is_true():
            if time.monotonic() > deadline:
                raise MissedGoal(f"no {what} within {timeout_s:.0f} s; logs are in {self._run.folder / 'logs'}")
            await asyncio.sleep(0.5)

    async def _watch(self, people: People) -> None:
        while True:
            notes = people.notes
            status, trainer = await asyncio.gather(self._stage.read_gateway(GATEWAYS[0]), self._stage.read_trainer())
            rollout = status.get("rollout") or {}
            say(
                f"{time.monotonic() - self._started:5.0f} s  {notes.requests} requests, {len(notes.failed)} failed, "
                f"{len(notes.interrupted)} interrupted  {len(self._history.acknowledged)} acknowledged  "
                f"ready {self._stage.balancer.num_ready}, engines {sum(e['up'] for e in status.get('engines', ()))}  "
                f"round {(trainer.get('round') or {}).get('state')}  rollout {rollout.get('phase')}  kills "
                f"{len(self._faults.kills)}"
            )
            await asyncio.sleep(_PROGRESS_S)

    # -- what came of it

    async def _conclude(self, people: People) -> tuple[dict[str, object], list[str]]:
        await self._is_promoted()
        stage, notes = self._stage, people.notes
        for name in ("trainer", *GATEWAYS):
            await stage.victims[name].stop()
        evidence = await asyncio.to_thread(
            gather, self._history, stage.gateway_database, stage.trainer_database, stage.trainer_dir
        )
        lost, doubled = find_lost(evidence), find_doubled(evidence)
        kills = Counter(name.partition("-")[0] for _, name in self._faults.kills)
        figures: dict[str, object] = {
            "gateways": len(GATEWAYS),
            "engines": len(ENGINES),
            "requests": notes.requests,
            "failed": len(notes.failed),
            "lost": len(lost),
            "duplicated": len(doubled),
            "promotions": self._promotions,
            "kills": len(self._faults.kills),
            "cuts": len(self._faults.cuts),
            "seed": self._run.seed,
            "engine": "vLLM" if self._run.is_real else "stand-in",
            "streams": notes.streams,
            "interrupted": len(notes.interrupted),
            "acknowledged": len(self._history.acknowledged),
            "taken_in": len(evidence.consumed),
            "refused_choices": len(notes.refused_choices),
            "kills_by_process": dict(kills),
            "back_s": self._faults.recovery_s,
            "counts": dict(sorted(notes.counts.items())),
            "seconds": round(time.monotonic() - self._started, 1),
        }
        broken = [f"failed: {said}" for said in notes.failed[:10]]
        broken += [f"refused: {said}" for said in notes.refused_choices[:10]]
        broken += [f"lost: {name}" for name in sorted(lost)[:5]] + [
            f"duplicated: {name}" for name in sorted(doubled)[:5]
        ]
        for said in notes.interrupted:
            say(f"interrupted by the kill of {said}")
        return figures, broken

"""One chaos run from the first start to the figures: load, kills, the way back to rest, the check.

The end is part of the promise: with everything up and nobody asking, the outbox empties, the log is read to its end, and
a last round leaves no choice waiting.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from bench.chaos.checker import Findings, check
from bench.chaos.clients import Clients, History
from bench.chaos.evidence import count_outcomes, gather
from bench.chaos.killers import Killer, NotRecovered, Tally
from bench.chaos.schedule import SECONDS_A_KILL, plan_lives, share_kills
from bench.chaos.stage import ROUND_EVERY, Stage, set_up
from bench.chaos.victims import Victim
from feedback.faults import POINTS
from prefloop.startup import DatabaseKind, LogKind

NUM_CLIENTS = 24
THINK_S = 3.0
CHOICES_A_KILL = 50
MIN_ROUNDS = 3
MIN_KILLS_EACH = 20
FULL_RUN = 200  # kills from which every process and every boundary must have had its share
PROGRESS_S = 5.0
START_TIMEOUT_S = 180.0
GOAL_TIMEOUT_S = 900.0
NUM_CLOSING = 1  # each may make a round due
START_ORDER = ("postgresql", "broker", "engine", "gateway", "trainer")


class MissedGoal(Exception):
    """The machine did not come to what it had to in time; the message says to what."""


@dataclass(frozen=True)
class Run:
    """What the command line asked for."""

    seed: int
    num_kills: int
    log: LogKind
    database: DatabaseKind
    folder: Path
    seed_policy: Path


@dataclass
class View:
    """What was last seen of the machine."""

    rounds: int = 0
    published: int = 0
    waiting: int = 0
    lag: int | None = None
    outbox: int = 0


async def run_chaos(run: Run) -> tuple[dict[str, object], list[str]]:
    """The figures, and a sentence for every promise that broke. Raises MissedGoal, KafkaFailed, PostgresError."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as session:
        with set_up(run.folder, run.seed_policy, run.log, run.database, run.seed, session) as stage:
            play = Play(run, stage)
            try:
                return await play.play()
            except NotRecovered as error:
                raise MissedGoal(f"{error}; its log is in {run.folder / 'logs'}") from error
            finally:
                await stop_all(stage)


class Play:
    """One run on one stage."""

    def __init__(self, run: Run, stage: Stage) -> None:
        self._run, self._stage = run, stage
        self._history = History(run.folder / "clients.jsonl")
        self._tally = Tally(stage.faults_path)
        self._view = View()
        self._started = time.monotonic()

    async def play(self) -> tuple[dict[str, object], list[str]]:
        await self._start_all()
        key = await self._stage.make_key()
        clients = Clients(
            self._stage.gateway_url, key, self._history, num=NUM_CLIENTS, think_s=THINK_S, seed=self._run.seed
        )
        watching = asyncio.create_task(self._watch())
        asking = asyncio.create_task(clients.run())
        try:
            await self._kill_all()
            say("every process is up again; the load goes on until there is enough of it")
            await self._wait_for("enough choices and rounds", self._has_enough)
            clients.stop()
            await asyncio.wait_for(asking, GOAL_TIMEOUT_S)
            await self._come_to_rest(clients)
            rounds = await self._close()
        finally:
            for task in (watching, asking):
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task
        stage = self._stage
        evidence = await asyncio.to_thread(
            gather, self._history, stage.gateway_database, stage.trainer_database, stage.state_dir
        )
        findings = check(evidence)
        return self._report(findings, rounds), findings.broken + self._judge_run(findings, rounds)

    async def _start_all(self) -> None:
        for name in START_ORDER:
            if victim := self._stage.victims.get(name):
                say(f"starting {name}")
                await victim.start()
                if name in ("postgresql", "broker"):
                    await self._wait_for(name, victim.is_up, START_TIMEOUT_S)
        for name in ("trainer", "gateway", "engine"):
            await self._wait_for(name, self._stage.victims[name].is_up, START_TIMEOUT_S)

    async def _kill_all(self) -> None:
        kills = share_kills(self._run.num_kills, sorted(self._stage.victims))
        say("kills planned: " + ", ".join(f"{num} {name}" for name, num in kills.items()))
        run_s = SECONDS_A_KILL * self._run.num_kills
        async with asyncio.TaskGroup() as group:
            for name, num in kills.items():
                lives = plan_lives(name, num, run_s, self._run.seed)
                killer = Killer(self._stage.victims[name], lives, self._tally, lambda: self._view.rounds)
                group.create_task(killer.run())

    async def _has_enough(self) -> bool:
        enough = CHOICES_A_KILL * self._run.num_kills
        return len(self._history.acknowledged) >= enough and self._view.published >= MIN_ROUNDS

    async def _come_to_rest(self, clients: Clients) -> None:
        """Nobody asks: outbox and log empty, and a last round takes what is left. Its trainer calls a round due early."""
        say("nobody asks any more; waiting for the outbox, the log and a last round")
        await self._wait_for("an empty outbox and log", self._is_drained)
        trainer = self._stage.trainer
        await trainer.stop()
        trainer.env[ROUND_EVERY] = "1"
        await trainer.start()
        await self._wait_for("the trainer", trainer.is_up, START_TIMEOUT_S)
        await clients.choose_some(NUM_CLOSING)
        await self._wait_for("no choice that waits", self._is_at_rest)

    async def _is_drained(self) -> bool:
        return await self._look() and self._view.outbox == 0 and self._view.lag == 0

    async def _is_at_rest(self) -> bool:
        status = await self._stage.read_trainer()
        state = status.get("round", {}).get("state")
        uses = status.get("uses", {})
        num_known = sum(uses.values())
        is_complete = num_known >= len(self._history.acknowledged) and not uses.get("waiting")
        return await self._is_drained() and is_complete and state in ("idle", "waiting")

    async def _close(self) -> dict[str, int]:
        for name in ("trainer", "gateway", "engine"):
            await self._stage.victims[name].stop()
        return await asyncio.to_thread(count_outcomes, self._stage.trainer_database)

    async def _watch(self) -> None:
        while True:
            await self._look()
            kills = self._tally.kills
            by_name = " ".join(f"{name} {num}" for name, num in sorted(kills.items()))
            view = self._view
            say(
                f"{time.monotonic() - self._started:5.0f} s  {kills.total()}/{self._run.num_kills} kills ({by_name})  "
                f"{len(self._history.acknowledged)} acknowledged  {view.rounds} rounds, {view.published} published  "
                f"outbox {view.outbox}, lag {view.lag}, waiting {view.waiting}"
            )
            await asyncio.sleep(PROGRESS_S)

    async def _look(self) -> bool:
        """Ask gateway and trainer how they do; False unless both say."""
        trainer, gateway = await asyncio.gather(self._stage.read_trainer(), self._stage.read_gateway())
        view = self._view
        if trainer:
            rounds = trainer["rounds"]  # the newest fifty
            view.rounds = rounds[-1]["number"] if rounds else 0
            view.published = sum(row["outcome"] == "published" for row in rounds)
            view.waiting, view.lag = trainer["uses"].get("waiting", 0), trainer["lag"]
        if gateway:
            view.outbox = gateway["counters"]["outbox_pending"]
        return bool(trainer and gateway)

    async def _wait_for(
        self, what: str, is_true: Callable[[], Awaitable[bool]], timeout_s: float = GOAL_TIMEOUT_S
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not await is_true():
            if time.monotonic() > deadline:
                raise MissedGoal(f"no {what} within {timeout_s:.0f} s; logs are in {self._run.folder / 'logs'}")
            await asyncio.sleep(0.5)

    # What came of it

    def _report(self, findings: Findings, rounds: dict[str, int]) -> dict[str, object]:
        recovery_s = sorted(s for times in self._tally.recovery_s.values() for s in times)
        return {
            "seed": self._run.seed,
            "log": self._run.log,
            "database": self._run.database,
            "kills": self._tally.kills.total(),
            "kills_by_process": dict(sorted(self._tally.kills.items())),
            "faults_fired": self._tally.count_faults(),
            "acknowledged": findings.acknowledged,
            "lost": findings.lost,
            "duplicated": findings.duplicated,
            "trained": findings.trained,
            "trained_twice": findings.trained_twice,
            "set_aside": findings.set_aside,
            "unaccounted": findings.unaccounted,
            "rounds": rounds["published"],
            "rounds_stopped": rounds["stopped"],
            "recovery_p50_s": round(find_quantile(recovery_s, 0.50), 2),
            "recovery_p99_s": round(find_quantile(recovery_s, 0.99), 2),
            "recovery_p50_s_by_process": {
                name: round(find_quantile(sorted(times), 0.5), 2)
                for name, times in sorted(self._tally.recovery_s.items())
            },
            "exits": dict(sorted(self._tally.exits.items())),
            "answers": dict(sorted(self._history.counts.items())),
            "seconds": round(time.monotonic() - self._started, 1),
        }

    def _judge_run(self, findings: Findings, rounds: dict[str, int]) -> list[str]:
        """What the run itself owed: without it, nothing would have been shown."""
        missed = []
        kills, wanted = self._tally.kills, self._run.num_kills
        if kills.total() != wanted:
            missed.append(f"{kills.total()} kills instead of {wanted}")
        if findings.acknowledged < CHOICES_A_KILL * wanted:
            missed.append(f"only {findings.acknowledged} acknowledged choices")
        if rounds["published"] < MIN_ROUNDS:
            missed.append(f"only {rounds['published']} rounds published")
        if wanted >= FULL_RUN:
            fired = self._tally.count_faults()
            missed += [f"no process ended at {point}" for point in POINTS if not fired.get(point)]
            missed += [f"{name} was killed {num} times" for name, num in kills.items() if num < MIN_KILLS_EACH]
        return missed


async def stop_all(stage: Stage) -> None:
    """End whatever still runs, clients of others first."""
    for name in reversed(START_ORDER):
        victim: Victim | None = stage.victims.get(name)
        if victim is not None:
            await victim.stop()


def find_quantile(ordered: list[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; 0 of none."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def say(line: str) -> None:
    print(line, flush=True)

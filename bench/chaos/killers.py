"""Kills each process as its plan says, starts it again, and measures how long its service was gone.

Outages of different processes overlap as they come. What really happened is counted here: a life that ended at a commit
boundary has left its line in the faults' file, or it is not counted as a kill at all.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from bench.chaos.schedule import CHANCES, Life
from bench.chaos.victims import Victim

PAUSE_S = 0.3  # between an end and the next start, as a supervisor would take
_LOOK_S = 0.1
_UP_TIMEOUT_S = 240.0
_EXIT_PAUSE_S = 1.0


class NotRecovered(Exception):
    """A process was not back in time; the message says which."""


@dataclass
class Tally:
    """Kills by process, lives that ended by themselves, and the seconds from each kill until the service was back."""

    faults_path: Path
    kills: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    _down_since: dict[str, list[float]] = field(default_factory=dict)

    def note_kill(self, name: str) -> None:
        self.kills[name] += 1
        self._down_since.setdefault(name, []).append(time.monotonic())

    def note_up(self, name: str) -> None:
        now = time.monotonic()
        self.recovery_s.setdefault(name, []).extend(now - at for at in self._down_since.pop(name, []))

    def read_faults(self) -> list[tuple[str, int]]:
        """(point, pid) of every boundary at which a process ended itself."""
        if not self.faults_path.exists():
            return []
        lines = self.faults_path.read_text().splitlines()
        return [(line.split()[0], int(line.split()[1])) for line in lines]

    def count_faults(self) -> dict[str, int]:
        return dict(sorted(Counter(point for point, _ in self.read_faults()).items()))


class Killer:
    """Takes one process through its lives. count_rounds: how many rounds have ended, as far as is known."""

    def __init__(self, victim: Victim, lives: Iterable[Life], tally: Tally, count_rounds: Callable[[], int]) -> None:
        self._victim, self._lives, self._tally, self._count_rounds = victim, lives, tally, count_rounds

    async def run(self) -> None:
        """All lives; then one more, in which nothing happens to it. Raises NotRecovered."""
        for life in self._lives:
            await self._live(life)
        await self._start("")
        await self._wait_until_up("")

    async def _live(self, life: Life) -> None:
        faults = f"{life.fault}={CHANCES[life.fault]}" if life.fault else ""
        if not self._victim.is_running():
            await self._start(faults)
        while not await self._end(life, faults):
            await asyncio.sleep(_EXIT_PAUSE_S)  # it ended by itself: what it needs is down
            await self._start(faults)
        self._tally.note_kill(self._victim.name)

    async def _end(self, life: Life, faults: str) -> bool:
        """Let it live, and kill it. False if it ended neither by us nor at a boundary."""
        if life.moment == "starting":
            await self._watch(life.after_s)
        elif await self._wait_until_up(faults):
            rounds = self._count_rounds()
            is_over = (lambda: self._count_rounds() > rounds) if life.moment == "round" else (lambda: False)
            await self._watch(life.after_s, is_over)
        if await self._victim.kill() or self._has_ended_itself():
            return True
        self._tally.exits[self._victim.name] += 1
        return False

    async def _start(self, faults: str) -> None:
        await asyncio.sleep(PAUSE_S)
        await self._victim.start(faults)

    async def _watch(self, seconds: float, is_over: Callable[[], bool] = lambda: False) -> None:
        """Return when it has ended, when the time is up, or when `is_over`."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self._victim.is_running() and not is_over():  # noqa: ASYNC110
            await asyncio.sleep(min(_LOOK_S, max(0.0, deadline - time.monotonic())))

    async def _wait_until_up(self, faults: str) -> bool:
        """False if it ended itself at a boundary first. Started again when it ends for another reason."""
        deadline = time.monotonic() + _UP_TIMEOUT_S
        while not await self._victim.is_up():
            if not self._victim.is_running():
                if self._has_ended_itself():
                    return False
                self._tally.exits[self._victim.name] += 1
                await asyncio.sleep(_EXIT_PAUSE_S)
                await self._start(faults)
            if time.monotonic() > deadline:
                raise NotRecovered(f"{self._victim.name} is not back after {_UP_TIMEOUT_S:.0f} s")
            await asyncio.sleep(_LOOK_S)
        self._tally.note_up(self._victim.name)
        return True

    def _has_ended_itself(self) -> bool:
        return not self._victim.is_running() and any(pid == self._victim.pid for _, pid in self._tally.read_faults())

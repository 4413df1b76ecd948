"""A controller killed at some 200 random points of 20 rollouts: they end as if nothing had happened, and decisions replay.

A kill falls before or after any transaction, load or unload of a tick, as kill -9 would. What people said is in the
database; first requests that were not stored yet die with the process, and the same people ask again.
"""

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from world import FakeSwap, World

from feedback.database import Writer
from gateway.rollout.assessment import digest_code
from gateway.rollout.desired_state import name_observed, read_rules
from gateway.rollout.pure import machine
from gateway.rollout.pure.decisions import replay_decision
from gateway.tables.rollouts import list_decisions, list_events, list_rollouts

NUM_LIVES = 20
KILL_SHARE = 0.7
TICKS_A_BATCH = 4
USERS_A_BATCH = 12
MAX_BATCHES = 24


class Killed(BaseException):
    """Stands for kill -9: nothing of ours may catch it."""


@dataclass
class Killer:
    """Kills at a random operation of the tick that it is told to. dice: None for a life without kills."""

    dice: random.Random | None
    num_killed: int = 0
    _countdown: int = -1
    _is_after: bool = False

    def aim(self, share: float) -> None:
        """Before a tick, or with 0 before anything else: with this chance it is the process's last."""
        self._countdown = -1
        if self.dice is not None and self.dice.random() < share:
            self._countdown, self._is_after = self.dice.randrange(4), self.dice.random() < 0.5

    async def carry_out(self, operation: Callable[[], Awaitable[Any]]) -> Any:
        """Do it, unless the process dies before; it may die right after."""
        is_now = self._countdown == 0
        self._countdown -= 1
        if is_now and not self._is_after:
            self._die()
        result = await operation()
        if is_now:
            self._die()
        return result

    def _die(self) -> None:
        self.num_killed += 1
        raise Killed


@dataclass(frozen=True)
class Story:
    """One rollout's people: how often the canary wins, how often its first requests fail, and how that must end."""

    seed: int
    win_share: float
    error_share: float
    ends: str

    @classmethod
    def draw(cls, seed: int) -> "Story":
        """One of four kinds."""
        return [
            cls(seed, 0.9, 0.0, machine.HEALTHY),
            cls(seed, 0.1, 0.0, machine.DEGRADED),
            cls(seed, 0.5, 0.0, machine.DEGRADED),
            cls(seed, 0.8, 0.7, machine.DEGRADED),
        ][seed % 4]


@dataclass(frozen=True)
class Ending:
    """What must be the same however often the controller died. A step of the ramp may end a second later, so only the last
    move's reason.
    """

    phase: str
    reason: str
    serving: tuple[str | None, str | None]
    statuses: list[str]
    loaded: list[str]


def hook(killer: Killer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the killer see every transaction, load and unload."""
    for owner, name in ((Writer, "arun"), (FakeSwap, "load"), (FakeSwap, "unload")):
        original = getattr(owner, name)

        async def mortal(*args: Any, _original: Any = original) -> Any:
            return await killer.carry_out(lambda: _original(*args))

        monkeypatch.setattr(owner, name, mortal)


async def live(world: World, story: Story, killer: Killer) -> Ending:
    """Two checkpoints; the second one's rollout to its end, and its decisions replayed."""
    ids = [await world.publish(0)]
    await pass_time(world, killer)
    ids.append(await world.publish(1))
    for number in range(MAX_BATCHES):
        users = range(number * USERS_A_BATCH, (number + 1) * USERS_A_BATCH)
        rows = await world.writer.arun(list_rollouts)
        if rows and rows[0].phase in (machine.HEALTHY, machine.DEGRADED):
            break
        is_asked = bool(rows) and rows[0].phase in machine.ON_TRIAL
        if is_asked:
            await compare(world, story, users)
        await pass_time(world, killer, story if is_asked else None, users)
    await pass_time(world, killer)
    row, view = await world.row(), world.deployment.view
    code = digest_code()
    for _, decision in await world.writer.arun(lambda conn: list_decisions(conn, row.id)):
        replayed = replay_decision(decision, read_rules, code)
        assert (replayed.digest, replayed.is_same_code) == (decision.digest, True)
    events = await world.writer.arun(lambda conn: list_events(conn, row.id))
    return Ending(
        phase=row.phase,
        reason=events[-1].reason,
        serving=(view.stable, view.canary),
        statuses=[await world.status(checkpoint) for checkpoint in ids],
        loaded=sorted(world.swap.loaded),
    )


async def pass_time(world: World, killer: Killer, story: Story | None = None, users: range = range(0)) -> None:
    """Some seconds of ticks, any of which may be the process's last; the last one is not."""
    for number in range(TICKS_A_BATCH):
        if story is not None:
            await request(world, story, users)
        killer.aim(KILL_SHARE if number < TICKS_A_BATCH - 1 else 0.0)
        try:
            await world.tick(1.0)
        except Killed:
            world.restart()
        killer.aim(0.0)


async def request(world: World, story: Story, users: range) -> None:
    """Both arms' first requests of these users, the same whenever they are asked."""
    row = await world.row()
    for user in users:
        for arm in ("stable", "canary"):
            fails = arm == "canary" and random.Random(f"{story.seed}-error-{user}").random() < story.error_share
            world.observed.record(name_observed(row), f"u{user}", arm, fails, False, False, 0.1, answered="duel")


async def compare(world: World, story: Story, users: range) -> None:
    """Three duels of each of these users."""
    row = await world.row()
    for user in users:
        dice = random.Random(f"{story.seed}-duels-{user}")
        for _ in range(3):
            await world.choose(row, f"u{user}", dice.random() < story.win_share)


@pytest.mark.parametrize("seed", range(NUM_LIVES))
async def test_a_rollout_ends_the_same_however_often_its_controller_is_killed(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    story = Story.draw(seed)
    unharmed, killed = Killer(None), Killer(random.Random(f"kills-{seed}"))
    endings = []
    for name, killer in (("unharmed", unharmed), ("killed", killed)):
        (tmp_path / name).mkdir()
        world = World(tmp_path / name, baking_s=3.0, max_users=120)
        with monkeypatch.context() as patch:
            hook(killer, patch)
            endings.append(await live(world, story, killer))
        world.close()
    assert endings[1] == endings[0]
    assert killed.num_killed >= 3 and endings[0].phase == story.ends
    print(f"{killed.num_killed} kills")

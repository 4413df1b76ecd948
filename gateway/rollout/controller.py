"""Drives rollouts: looks every half second, does what the row asks for, moves the row on.

Level-triggered: every outside action is idempotent and follows from the tables, so a controller killed anywhere goes
on where it was. Of several gateways one leads: its transitions hold the generation it saw and its fence, or they change
nothing; the others follow. Operators' actions come in at any gateway. What to do is decided in machine.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection

from feedback.database import Writer
from feedback.outages import log_failure
from gateway import tables
from gateway.engines.deployment import Deployment
from gateway.engines.register import EngineRegister
from gateway.rollout import machine
from gateway.rollout.duels import read_duels
from gateway.rollout.evidence import Duel, Evidence
from gateway.rollout.follower import Follower
from gateway.rollout.guardrails import Guardrails
from gateway.rollout.machine import Transition
from gateway.rollout.metrics import Watched, keep_watching
from gateway.rollout.observations import Observation
from gateway.rollout.plan import new_rollout, new_statuses, read_settings, weigh
from gateway.rollout.registry import Registry
from gateway.rollout.summary import build_view, describe_decision, digest_code
from gateway.rollout.view import RolloutView
from gateway.settings import GatewaySettings, RolloutSection
from gateway.tables import CheckpointRow, RolloutRow, ServingRow

if TYPE_CHECKING:
    from gateway.engines.fleet import Fleet
    from gateway.engines.swap import Swap

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LOAD_PATIENCE_S = 120.0
_MOST_MOVES = 4


class Controller:
    """This gateway's part in rollouts. `tick` and the operators' actions exclude each other."""

    def __init__(
        self,
        writer: Writer,
        swap: "Swap",
        deployment: Deployment,
        fleet: "Fleet",
        settings: GatewaySettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.fleet = fleet
        self._writer, self._swap, self._deployment = writer, swap, deployment
        self._settings, self._clock = settings, clock
        self._policy = settings.policy
        self._follower = Follower(writer, swap, deployment, settings, clock)
        self._code = digest_code()
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self.registry = Registry(writer, settings, self._wake.set, clock)
        self.engines = EngineRegister(writer, settings, self._wake.set, clock)
        self._draining_since: dict[str, float] = {}
        self._shown: dict[str, RolloutView] = {}
        self._missing_since: float | None = None
        self.watched: Watched | None = None

    @property
    def last_swap_s(self) -> float | None:
        """How long the last load and proof took, in seconds."""
        return self._follower.last_swap_s

    def now(self) -> float:
        """The controller's clock, epoch seconds."""
        return self._clock()

    # -- the loop

    async def run(self) -> None:
        """Tick until cancelled; a failing tick is logged and tried again."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follower.watch_age())
            group.create_task(self._tick_for_ever())

    async def _tick_for_ever(self) -> None:
        while True:
            try:
                await self.tick(self._clock())
            except tables.StaleController as error:
                _log.info("the tables moved on meanwhile: %s", error)
            except Exception as error:
                log_failure(_log, "rollout tick failed", error)
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.rollout.tick_s)

    async def tick(self, now: float) -> None:
        """Bring this gateway in line with the tables; the leader then makes the transitions that are due."""
        async with self._lock:
            fence = self.fleet.fence
            await self._flush()
            if fence is not None:
                await self._adopt_first(fence)
            is_serving = await self._follow(fence)
            if fence is not None and is_serving:
                await self._retire(now, fence)
                await self._move_on(now, fence)
            self._follower.let_go()

    async def _move_on(self, now: float, fence: int) -> None:
        for _ in range(_MOST_MOVES):
            row = await self._active() or await self._open_next(now, fence)
            if row is None or not await self._step(row, now, fence):
                return
            await self._follow(fence)

    async def _do(self, fn: Callable[[Connection], _T]) -> _T:
        return await self._writer.arun(fn)

    async def _active(self) -> RolloutRow | None:
        return await self._do(lambda conn: tables.active_rollout(conn, self._policy))

    async def _flush(self) -> None:
        observed = self._deployment.observations
        rows = observed.take() if observed is not None else []
        if observed is None or not rows:
            return
        try:
            await self._do(lambda conn: tables.add_observations(conn, rows))
        except Exception:
            observed.give_back(rows)
            raise

    # -- what serves

    async def _follow(self, fence: int | None) -> bool:
        """Apply what the tables say. False while nothing can be served."""
        applied = await self._follower.follow()
        self.watched = keep_watching(self.watched, applied.rollout, leads=self.fleet.fence is not None)
        if applied.missing is None:
            self._missing_since = None
        elif fence is not None:
            await self._give_up(applied.missing, fence)
        return applied.is_serving

    async def _give_up(self, row: RolloutRow, fence: int) -> None:
        """A canary that cannot be loaded again ends its rollout."""
        now = self._clock()
        self._missing_since = self._missing_since or now
        is_late = self._follower.is_refused or now - self._missing_since > await self._patience_s(row.checkpoint)
        if row.phase in (*machine.ON_TRIAL, machine.PROMOTING) and is_late:
            self._missing_since = None
            await self._move(row, machine.abort(row, "LoadFailed", "controller", now), fence)

    async def _adopt_first(self, fence: int) -> None:
        """The first checkpoint ever needs no trial: there is nothing to compare it with."""
        if self._deployment.view.stable is not None:
            return

        def read(conn: Connection) -> tuple[ServingRow, list[CheckpointRow]]:
            return tables.get_serving(conn, self._policy), tables.list_checkpoints(conn, "waiting")

        serving, waiting = await self._do(read)
        if serving.stable is not None or not waiting or not await self._follower.load(waiting[0]):
            return
        first = waiting[0].id

        def write(conn: Connection) -> None:
            tables.advance(conn, self._policy, serving.generation, fence, first)
            tables.set_status(conn, first, "stable")

        await self._do(write)

    async def _retire(self, now: float, fence: int) -> None:
        """Unload what no gateway keeps any more. Requests that take too long end without it: the engine has it still."""

        def read(conn: Connection) -> tuple[int, list[CheckpointRow]]:
            return tables.get_serving(conn, self._policy).generation, tables.list_checkpoints(conn, "draining")

        generation, draining = await self._do(read)
        self._draining_since = {row.id: self._draining_since.get(row.id, now) for row in draining}
        for row in draining:
            holdouts = self.fleet.find_holdouts(row.id, generation)
            is_late = now - self._draining_since[row.id] >= self._settings.rollout.drain_timeout_s
            if holdouts.behind or holdouts.wanting or (holdouts.answering and not is_late):
                continue
            if self.fleet.fence != fence:
                return
            await self._swap.unload(row)
            await self._do(lambda conn, done=row.id: self._set_retired(conn, done, fence))  # type: ignore[misc]

    def _set_retired(self, conn: Connection, checkpoint: str, fence: int) -> None:
        tables.require_fence(conn, self._policy, fence)
        tables.set_status(conn, checkpoint, "retired")

    # -- transitions

    async def _open_next(self, now: float, fence: int) -> RolloutRow | None:
        """Put the newest waiting checkpoint on trial, once the last rollout's has left the engines."""

        def write(conn: Connection) -> RolloutRow | None:
            tables.require_fence(conn, self._policy, fence)
            waiting = tables.list_checkpoints(conn, "waiting")
            serving = tables.get_serving(conn, self._policy)
            if not waiting or serving.stable is None or tables.list_checkpoints(conn, "draining"):
                return None
            for older in waiting[:-1]:
                tables.set_status(conn, older.id, "superseded")
            row = new_rollout(
                waiting[-1], serving, self._policy, self._settings.rollout, tables.count_rollouts(conn), now
            )
            tables.set_status(conn, row.checkpoint, "canary")
            tables.add_rollout(conn, row)
            return row

        return await self._do(write)

    async def _step(self, row: RolloutRow, now: float, fence: int) -> bool:
        """Do what the phase asks for; says whether the row moved."""
        settings = read_settings(row)
        transition: Transition | None
        if row.phase == machine.PENDING:
            transition = await self._prepare(row, now, settings)
        elif row.phase == machine.PROMOTING:
            transition = machine.promote(row, now, settings)
        elif row.phase == machine.ABORTING:
            transition = machine.finish_abort(row, now)
        else:
            evidence, guardrails, last = await self.assess(row, now)
            self.watched = Watched(row, evidence, guardrails)
            transition = machine.decide(row, evidence, guardrails, now, settings)
            if transition is not None and transition.decides:
                digest, data = describe_decision(row, transition.reason, evidence, guardrails, last, self._code)
                transition = replace(transition, row=replace(transition.row, decision_digest=digest))
                await self._move(row, transition, fence, decision=(digest, data))
                return True
        if transition is None:
            return False
        await self._move(row, transition, fence)
        return True

    async def _prepare(self, row: RolloutRow, now: float, settings: RolloutSection) -> Transition | None:
        if await self._do(lambda conn: tables.list_checkpoints(conn, "waiting")):
            return machine.supersede(row, now)
        if await self._follower.load_by_id(row.checkpoint):
            return machine.start(row, max(now, self._clock()), settings)
        if self._follower.is_refused or now - row.created_at > await self._patience_s(row.checkpoint):
            return machine.abort(row, "LoadFailed", "controller", now)
        return None

    async def _patience_s(self, checkpoint: str) -> float:
        """How long a checkpoint may take to be loaded: an engine of its own must start first for a whole model."""
        row = await self._do(lambda conn: tables.get_checkpoint(conn, checkpoint))
        return self._settings.rollout.engine_start_s if row is not None and row.is_full else _LOAD_PATIENCE_S

    async def _move(
        self, old: RolloutRow, to: Transition, fence: int | None, decision: tuple[str, str] | None = None
    ) -> RolloutRow:
        """Carry a transition into the tables: row, event, pointer, statuses and decision in one transaction.

        fence: None for an operator's action, which any gateway may carry out.
        """
        now = self._clock()
        pointer = None
        if to.row.phase == machine.BAKING and old.phase == machine.PROMOTING:
            pointer = old.checkpoint
        if to.row.phase == machine.ABORTING and old.phase == machine.BAKING:
            pointer = old.stable

        def write(conn: Connection) -> RolloutRow:
            for checkpoint, status in new_statuses(old, to.row):
                tables.set_status(conn, checkpoint, status)
            if decision is not None:
                tables.add_decision(conn, old.id, now, to.reason, *decision)
            return tables.move(
                conn,
                old,
                to.row,
                fence=fence,
                actor=to.actor,
                reason=to.reason,
                now=to.row.phase_started_at,
                stable=pointer,
            )

        new = await self._do(write)
        _log.info("rollout %s: %s -> %s (%s, %s)", new.id, old.phase, new.phase, to.reason, to.actor)
        return new

    # -- evidence

    async def assess(self, row: RolloutRow, now: float) -> tuple[Evidence, Guardrails, float]:
        """Weigh a rollout as of `now`; the last number is the time of the newest choice."""

        def read(conn: Connection) -> tuple[list[Duel], list[Observation]]:
            return read_duels(conn, row.id), tables.load_observations(conn, row.id)

        duels, observed = await self._do(read)
        return await asyncio.to_thread(weigh, row, duels, observed, now)

    async def show(self, row: RolloutRow) -> RolloutView:
        """What operators see; a finished rollout is computed once."""
        if row.id in self._shown:
            return self._shown[row.id]
        evidence, guardrails, _ = await self.assess(row, row.finished_at or self._clock())
        events = await self._do(lambda conn: tables.list_events(conn, row.id))
        view = build_view(row, evidence, guardrails, events, read_settings(row), self._settings.preset)
        if row.phase in tables.FINISHED:
            self._shown[row.id] = view
            if len(self._shown) > 200:
                self._shown.pop(next(iter(self._shown)))
        return view

    # -- what operators ask for

    async def act(self, rollout: str, plan: Callable[[RolloutRow, Guardrails], Transition]) -> RolloutRow:
        """Carry out an operator's action at once. Raises LookupError, RefusedAction or StaleController."""
        async with self._lock:
            row = await self._do(lambda conn: tables.get_rollout(conn, rollout))
            if row is None:
                raise LookupError(rollout)
            _, guardrails, _ = await self.assess(row, self._clock())
            moved = await self._move(row, plan(row, guardrails), None)
            await self._follow(None)
        self._wake.set()
        return moved

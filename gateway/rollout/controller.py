"""Drives rollouts: looks every half second, does what the row asks for, moves the row on.

Level-triggered: every outside action is idempotent and follows from the tables, so a controller killed anywhere goes
on where it was. A transition holds the generation it saw and this controller's fence, or it changes nothing. What to
do is decided in machine.py.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection

from feedback.database import Writer
from feedback.manifest import verify
from gateway import tables
from gateway.deployment import Deployment, ServingView
from gateway.errors import SwapError
from gateway.rollout import machine
from gateway.rollout.duels import read_duels
from gateway.rollout.evidence import Duel, Evidence
from gateway.rollout.guardrails import Guardrails
from gateway.rollout.machine import RefusedAction, Transition
from gateway.rollout.observations import Observation
from gateway.rollout.plan import copy_checkpoint, new_rollout, new_statuses, read_settings, wanted_view, weigh
from gateway.rollout.summary import build_view, describe_decision, digest_code
from gateway.rollout.view import RolloutView
from gateway.settings import GatewaySettings, RolloutSection
from gateway.tables import CheckpointRow, RolloutRow, ServingRow

if TYPE_CHECKING:
    from gateway.swap import Swap

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LOAD_PATIENCE_S = 120.0
_MOST_MOVES = 4


class Controller:
    """The one writer of rollouts. `tick` and the operators' actions exclude each other."""

    def __init__(
        self, writer: Writer, swap: "Swap", deployment: Deployment, settings: GatewaySettings,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self._writer, self._swap, self._deployment, self._settings, self._clock = (
            writer,
            swap,
            deployment,
            settings,
            clock,
        )
        self._policy = settings.policy
        self._code = digest_code()
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._fence: int | None = None
        self._loaded: set[str] = set()
        self._shown: dict[str, RolloutView] = {}
        self._missing_since: float | None = None
        self._is_refused = False
        self.last_swap_s: float | None = None
        self._last_load_error = ""

    def now(self) -> float:
        """The controller's clock, epoch seconds."""
        return self._clock()

    # -- the loop

    async def run(self) -> None:
        """Tick until cancelled; a failing tick is logged and tried again."""
        while True:
            try:
                await self.tick(self._clock())
            except tables.StaleController:
                _log.warning("another controller took over; taking the fence again")
                self._fence = None
            except Exception:
                _log.exception("rollout tick failed")
            self._wake.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.rollout.tick_s)

    async def tick(self, now: float) -> None:
        """Bring the world in line with the tables, then make the transitions that are due."""
        async with self._lock:
            if self._fence is None:
                self._fence = await self._do(lambda conn: tables.take_fence(conn, self._policy))
            await self._flush()
            await self._adopt_first()
            if not await self._apply_view():
                return
            await self._retire()
            for _ in range(_MOST_MOVES):
                row = await self._active() or await self._open_next(now)
                if row is None or not await self._step(row, now):
                    return
                await self._apply_view()

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

    async def _adopt_first(self) -> None:
        """The first checkpoint ever needs no trial: there is nothing to compare it with."""

        def read(conn: Connection) -> tuple[ServingRow, list[CheckpointRow]]:
            return tables.get_serving(conn, self._policy), tables.list_checkpoints(conn, "waiting")

        serving, waiting = await self._do(read)
        if serving.stable is not None or not waiting or not await self._load(waiting[0]):
            return
        first = waiting[0].id

        def write(conn: Connection) -> None:
            assert self._fence is not None
            tables.advance(conn, self._policy, serving.generation, self._fence, first)
            tables.set_status(conn, first, "stable")

        await self._do(write)

    async def _retire(self) -> None:
        for checkpoint in await self._do(lambda conn: tables.list_checkpoints(conn, "draining")):
            try:
                await self._swap.drain_and_unload(checkpoint.id, self._settings.rollout.drain_timeout_s)
            except SwapError as error:
                _log.warning("could not unload %s: %s", checkpoint.id, error)
            self._loaded.discard(checkpoint.id)
            await self._do(lambda conn, done=checkpoint.id: tables.set_status(conn, done, "retired"))  # type: ignore[misc]

    # -- what serves

    async def _apply_view(self) -> bool:
        """Load what the tables say serves and apply it. False while stable is not there or not loaded."""

        def read(conn: Connection) -> tuple[ServingRow, RolloutRow | None]:
            return tables.get_serving(conn, self._policy), tables.active_rollout(conn, self._policy)

        serving, row = await self._do(read)
        if serving.stable is None or not await self._load_by_id(serving.stable):
            return False
        view = wanted_view(serving, row)
        if view.canary is not None and not await self._load_by_id(view.canary):
            alone = ServingView(generation=serving.generation - 1, stable=serving.stable)
            self._deployment.apply(alone)  # stable serves alone until the other is back
            await self._give_up(row)
            return True
        self._missing_since = None
        observed = self._deployment.observations
        if observed is not None:
            seen = None
            if view.rollout is not None and view.rollout != self._deployment.view.rollout:
                rows = await self._do(lambda conn: tables.load_observations(conn, view.rollout or ""))
                seen = [(o.user, o.arm, o.paired) for o in rows]
            observed.begin(view.rollout, view.weight, seen)
        self._deployment.apply(view)
        return True

    async def _give_up(self, row: RolloutRow | None) -> None:
        """A canary that cannot be loaded again ends its rollout."""
        now = self._clock()
        self._missing_since = self._missing_since or now
        is_late = self._is_refused or now - self._missing_since > _LOAD_PATIENCE_S
        if row is not None and row.phase in (*machine.ON_TRIAL, machine.PROMOTING) and is_late:
            self._missing_since = None
            await self._move(row, machine.abort(row, "LoadFailed", "controller", now))

    async def _load_by_id(self, checkpoint: str) -> bool:
        if checkpoint in self._loaded:
            return True
        row = await self._do(lambda conn: tables.get_checkpoint(conn, checkpoint))
        assert row is not None, checkpoint
        return await self._load(row)

    async def _load(self, checkpoint: CheckpointRow) -> bool:
        if checkpoint.id in self._loaded:
            return True
        try:
            self.last_swap_s = await self._swap.load(checkpoint)
        except SwapError as error:
            if str(error) != self._last_load_error:  # a starting engine refuses every half second
                _log.warning("could not load %s: %s", checkpoint.id, error)
            self._last_load_error = str(error)
            self._is_refused = not error.is_transient
            return False
        self._loaded.add(checkpoint.id)
        self._last_load_error = ""
        return True

    async def wanted(self) -> list[CheckpointRow]:
        """The checkpoints every engine must hold, for `Swap.reconcile`."""

        def read(conn: Connection) -> list[CheckpointRow]:
            view = wanted_view(tables.get_serving(conn, self._policy), tables.active_rollout(conn, self._policy))
            found = [tables.get_checkpoint(conn, name) for name in (view.stable, view.canary) if name is not None]
            return [row for row in found if row is not None]

        return await self._do(read)

    # -- transitions

    async def _open_next(self, now: float) -> RolloutRow | None:
        def write(conn: Connection) -> RolloutRow | None:
            waiting = tables.list_checkpoints(conn, "waiting")
            serving = tables.get_serving(conn, self._policy)
            if not waiting or serving.stable is None:
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

    async def _step(self, row: RolloutRow, now: float) -> bool:
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
            transition = machine.decide(row, evidence, guardrails, now, settings)
            if transition is not None and transition.decides:
                digest, data = describe_decision(row, transition.reason, evidence, guardrails, last, self._code)
                transition = replace(transition, row=replace(transition.row, decision_digest=digest))
                await self._move(row, transition, decision=(digest, data))
                return True
        if transition is None:
            return False
        await self._move(row, transition)
        return True

    async def _prepare(self, row: RolloutRow, now: float, settings: RolloutSection) -> Transition | None:
        if await self._do(lambda conn: tables.list_checkpoints(conn, "waiting")):
            return machine.supersede(row, now)
        if await self._load_by_id(row.checkpoint):
            return machine.start(row, max(now, self._clock()), settings)
        if self._is_refused or now - row.created_at > _LOAD_PATIENCE_S:
            return machine.abort(row, "LoadFailed", "controller", now)
        return None

    async def _move(self, old: RolloutRow, to: Transition, decision: tuple[str, str] | None = None) -> RolloutRow:
        """Carry a transition into the tables: row, event, pointer, statuses and decision in one transaction."""
        fence, now = self._fence, self._clock()
        pointer = None
        if to.row.phase == machine.BAKING and old.phase == machine.PROMOTING:
            pointer = old.checkpoint
        if to.row.phase == machine.ABORTING and old.phase == machine.BAKING:
            pointer = old.stable

        def write(conn: Connection) -> RolloutRow:
            assert fence is not None
            for checkpoint, status in new_statuses(old, to.row):
                tables.set_status(conn, checkpoint, status)
            if decision is not None:
                tables.add_decision(conn, old.id, now, to.reason, *decision)
            moved = to.row
            return tables.move(
                conn,
                old,
                moved,
                fence=fence,
                actor=to.actor,
                reason=to.reason,
                now=moved.phase_started_at,
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
            if self._fence is None:
                raise RefusedAction("The controller has not started yet.")
            row = await self._do(lambda conn: tables.get_rollout(conn, rollout))
            if row is None:
                raise LookupError(rollout)
            _, guardrails, _ = await self.assess(row, self._clock())
            moved = await self._move(row, plan(row, guardrails))
            await self._apply_view()
        self._wake.set()
        return moved

    async def register(self, path: str) -> tuple[CheckpointRow, bool]:
        """Register the checkpoint in a directory; returns (row, whether it is new)."""
        manifest = await asyncio.to_thread(verify, Path(path))
        where = str(await asyncio.to_thread(Path(path).resolve))  # engines run elsewhere
        found = await self._do(lambda conn: tables.register_checkpoint(conn, manifest, where, self._clock()))
        self._wake.set()
        return found

    async def start_rollout(self, checkpoint: str) -> CheckpointRow:
        """Queue a known checkpoint for trial. Raises LookupError or RefusedAction."""

        def write(conn: Connection) -> CheckpointRow:
            row = tables.get_checkpoint(conn, checkpoint)
            if row is None:
                raise LookupError(checkpoint)
            if row.status in ("stable", "canary", "baking", "waiting"):
                raise RefusedAction(f"Checkpoint {checkpoint} is {row.status} already.")
            tables.queue_checkpoint(conn, checkpoint, self._clock())
            return row

        row = await self._do(write)
        self._wake.set()
        return row

    async def start_aa(self) -> CheckpointRow:
        """Put stable's own weights on trial under a new id. Raises RefusedAction if nothing is stable yet."""

        def read(conn: Connection) -> tuple[CheckpointRow | None, int]:
            rows = tables.list_checkpoints(conn)
            return tables.get_stable(conn, self._policy), max((row.number for row in rows), default=0) + 1

        stable, number = await self._do(read)
        if stable is None:
            raise RefusedAction("Nothing is stable yet.")
        path = await asyncio.to_thread(copy_checkpoint, stable, number)
        return (await self.register(str(path)))[0]

"""Drives rollouts: looks every half second, does what the row asks for, moves the row on.

Level-triggered: every outside action is idempotent and follows from the tables, so a controller killed anywhere goes
on where it was. Of several gateways one leads: its transitions hold the generation it saw and its fence, or they change
nothing; the others follow. What to do is decided in machine.py, what operators do is in actions.py.
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
from feedback.duels import store_failed_duels
from feedback.outages import is_outage, log_failure
from gateway.engines.deployment import Deployment
from gateway.engines.full_engines import EngineRegistry
from gateway.rollout import transactions
from gateway.rollout.actions import OperatorActions
from gateway.rollout.assessment import Assessor, CurrentRollout, describe_problem, digest_code
from gateway.rollout.checkpoints import CheckpointRegistry
from gateway.rollout.desired_state import read_rules
from gateway.rollout.moves import MoveCounts
from gateway.rollout.observations import Observations
from gateway.rollout.pure import machine
from gateway.rollout.pure.decisions import record_decision
from gateway.rollout.pure.transitions import Transition
from gateway.rollout.reconciler import Reconciled, Reconciler
from gateway.rollout.transactions import Snapshot, read_snapshot
from gateway.settings import GatewaySettings
from gateway.tables.checkpoints import get_checkpoint
from gateway.tables.divergences import add_divergences
from gateway.tables.observations import add_observations
from gateway.tables.rows import DecisionRow, RolloutRow
from gateway.tables.serving import StaleController

if TYPE_CHECKING:
    from gateway.engines.swap import Swap
    from gateway.rollout.membership import Membership

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_LOAD_PATIENCE_S = 120.0
_MAX_ROUNDS = 8  # of one tick; the next one goes on


class Controller:
    """This gateway's part in rollouts.

    problem: why the last tick failed, empty after one that did not; num_failures: of ticks, since start.
    """

    def __init__(
        self,
        writer: Writer,
        swap: "Swap",
        deployment: Deployment,
        membership: "Membership",
        settings: GatewaySettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.membership = membership
        self._writer, self._swap, self._deployment = writer, swap, deployment
        self._settings, self._clock = settings, clock
        self._policy = settings.policy
        self.observations = Observations(clock=clock)
        self._code = digest_code()
        self._wake = asyncio.Event()
        self._reconciler = Reconciler(
            writer, swap, deployment, self.observations, settings, clock, on_load=self._wake.set
        )
        self.registry = CheckpointRegistry(writer, settings, self._wake.set, clock)
        self.engines = EngineRegistry(writer, settings, self._wake.set, clock)
        self.assessor = Assessor(writer, settings.preset, clock)
        self.moves = MoveCounts()
        self.actions = OperatorActions(writer, swap, deployment, self.assessor, self.moves, self._wake.set, clock)
        self._draining_since: dict[str, float] = {}
        self._missing_since: float | None = None
        self.current: CurrentRollout | None = None
        self.problem = ""
        self.num_failures = 0

    @property
    def last_swap_s(self) -> float | None:
        """How long the last load and proof took, in seconds."""
        return self._reconciler.last_swap_s

    # -- the loop

    async def run(self) -> None:
        """Tick until cancelled; a failing tick is logged and tried again."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._reconciler.watch_age())
                group.create_task(self._tick_for_ever())
        finally:
            self._reconciler.close()

    async def _tick_for_ever(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.tick(self._clock())
                self.problem = ""
            except StaleController as error:
                _log.info("the tables moved on meanwhile: %s", error)
            except Exception as error:
                self.num_failures += 1
                self.problem = describe_problem(error)
                log_failure(_log, "rollout tick failed", error)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.rollout.tick_s)

    async def tick(self, now: float) -> None:
        """Bring this gateway in line with the tables; the leader then makes the transitions that are due."""
        fence = self.membership.fence
        for _ in range(_MAX_ROUNDS):
            snapshot = await self._read()
            applied = await self._reconcile(snapshot)
            if fence is None or not await self._move_on(snapshot, applied, now, fence):
                break
        self._reconciler.release_unnamed()

    async def _move_on(self, snapshot: Snapshot, applied: Reconciled, now: float, fence: int) -> bool:
        """Do the first thing that is due; says whether it changed the tables, so that they must be read again."""
        row = snapshot.rollout
        if not applied.is_serving:
            return await self._adopt_first(snapshot, fence)
        if applied.lacks_canary and row is not None and await self._give_up(row, fence):
            return True
        if await self._retire(snapshot, now, fence):
            return True
        if row is None:
            return await self._open_next(snapshot, now, fence)
        if applied.lacks_canary and row.phase == machine.PROMOTING:
            return False  # everybody would be handed to what no engine holds: it is loaded first, or given up
        return await self._step(row, snapshot, now, fence)

    async def _do(self, fn: Callable[[Connection], _T]) -> _T:
        return await self._writer.arun(fn)

    async def _read(self) -> Snapshot:
        """Store what was observed since the last look, and read what the tables say."""
        rows, failed, divergences = self.observations.drain()

        def exchange(conn: Connection) -> Snapshot:
            add_observations(conn, rows)
            store_failed_duels(conn, failed)
            add_divergences(conn, divergences)
            return read_snapshot(conn, self._policy)

        try:
            return await self._do(exchange)
        except Exception:
            self.observations.restore(rows, failed, divergences)
            raise

    # -- what serves

    async def _reconcile(self, snapshot: Snapshot) -> Reconciled:
        applied = await self._reconciler.reconcile(snapshot)
        row, leads = snapshot.rollout, self.membership.fence is not None
        if self.current is not None:
            self.current = self.current.update(row, leads=leads)
        else:
            self.current = None if row is None else CurrentRollout(row)
        if not applied.lacks_canary:
            self._missing_since = None
        return applied

    async def _give_up(self, row: RolloutRow, fence: int) -> bool:
        """A canary that cannot be loaded again ends its rollout; says whether it did."""
        now = self._clock()
        self._missing_since = self._missing_since or now
        is_late = self._reconciler.is_refused(row.checkpoint) or now - self._missing_since > await self._patience_s(
            row.checkpoint
        )
        if row.phase not in (*machine.ON_TRIAL, machine.SHADOWING, machine.PROMOTING) or not is_late:
            return False
        self._missing_since = None
        await self._move(row, machine.give_up(row, now), fence)
        return True

    async def _adopt_first(self, snapshot: Snapshot, fence: int) -> bool:
        """The first checkpoint ever needs no trial: there is nothing to compare it with."""
        if snapshot.serving.stable is not None or not snapshot.waiting:
            return False
        if not await self._reconciler.load(snapshot.waiting[0]):
            return False
        await self._do(lambda conn: transactions.adopt_first(conn, snapshot, fence))
        return True

    async def _retire(self, snapshot: Snapshot, now: float, fence: int) -> bool:
        """Unload one that no gateway keeps any more. Requests that take too long end without it: the engine has it still."""
        self._draining_since = {row.id: self._draining_since.get(row.id, now) for row in snapshot.draining}
        generation = snapshot.serving.generation
        row = next((row for row in snapshot.draining if self._may_go(row.id, generation, now)), None)
        if row is None or self.membership.fence != fence:
            return False
        await self._swap.unload(row)
        await self._do(lambda conn: transactions.set_retired(conn, self._policy, row.id, fence))
        return True

    def _may_go(self, checkpoint: str, generation: int, now: float) -> bool:
        blockers = self.membership.find_unload_blockers(checkpoint, generation)
        is_late = now - self._draining_since[checkpoint] >= self._settings.rollout.drain_timeout_s
        return not (blockers.behind or blockers.expecting or (blockers.answering and not is_late))

    # -- transitions

    async def _open_next(self, snapshot: Snapshot, now: float, fence: int) -> bool:
        """Put the newest waiting checkpoint on trial, once the last rollout's has left the engines."""
        if not snapshot.waiting or snapshot.draining:
            return False
        await self._do(lambda conn: transactions.open_rollout(conn, snapshot, self._settings.rollout, now, fence))
        return True

    async def _step(self, row: RolloutRow, snapshot: Snapshot, now: float, fence: int) -> bool:
        """Do what the phase asks for; says whether the row moved."""
        if row.phase == machine.PENDING:
            transition = await self._prepare(row, snapshot, now)
        elif row.phase == machine.PROMOTING:
            transition = machine.promote(row, now, read_rules(row))
        elif row.phase == machine.ROLLING_BACK:
            transition = await self._bring_back(row, now)
        elif row.phase == machine.ABORTING:
            transition = machine.finish_abort(row, now)
        else:
            try:
                return await self._judge(row, now, fence)
            except Exception as error:
                await self._hold(row, error, now, fence)
                raise
        if transition is None:
            return False
        await self._move(row, transition, fence)
        return True

    async def _judge(self, row: RolloutRow, now: float, fence: int) -> bool:
        """Weigh what people said, and decide by it; says whether the row moved.

        What was weighed lately only says whether there is anything to decide: by the clock, or again because it could
        not be stored.
        """
        rules = read_rules(row)
        last = self.current.assessment if self.current is not None else None
        if last is not None and last.is_recent(row, now) and machine.decide(row, last.findings, now, rules) is None:
            return False
        found = await self.assessor.assess(row, now)
        self.current = CurrentRollout(row, found)
        transition = machine.decide(row, found.findings, now, rules)
        if transition is None:
            return False
        decision = None
        if transition.decides:
            decision = record_decision(row, transition, found.findings, found.inputs, self._code)
            transition = replace(transition, row=replace(transition.row, decision_digest=decision.digest))
        await self._move(row, transition, fence, decision)
        return True

    async def _hold(self, row: RolloutRow, error: Exception, now: float, fence: int) -> None:
        """What cannot be judged passes nothing: pause it, unless its row moved on or the database does not answer."""
        is_ours = not is_outage(error) and not isinstance(error, StaleController)
        if is_ours and row.phase in (machine.PROGRESSING, machine.WAITING):
            note = describe_problem(error)
            await self._move(row, machine.hold_unweighable(row, now, note), fence)

    async def _prepare(self, row: RolloutRow, snapshot: Snapshot, now: float) -> Transition | None:
        if snapshot.waiting:
            return machine.supersede(row, now)
        if await self._reconciler.load_by_id(row.checkpoint):
            return machine.begin(row, max(now, self._clock()), read_rules(row))
        if self._reconciler.is_refused(row.checkpoint) or now - row.created_at > await self._patience_s(row.checkpoint):
            return machine.give_up(row, now)
        return None

    async def _bring_back(self, row: RolloutRow, now: float) -> Transition | None:
        """Load what served before, and let it serve; what cannot be loaded leaves what serves."""
        if await self._reconciler.load_by_id(row.stable):
            return machine.end_rollback(row, now)
        is_late = now - row.phase_started_at > await self._patience_s(row.stable)
        return machine.give_up(row, now) if is_late or self._reconciler.is_refused(row.stable) else None

    async def _patience_s(self, checkpoint: str) -> float:
        """How long a checkpoint may take to be loaded: an engine of its own must start first for a whole model."""
        row = await self._do(lambda conn: get_checkpoint(conn, checkpoint))
        return self._settings.rollout.engine_start_s if row is not None and row.is_full else _LOAD_PATIENCE_S

    async def _move(
        self, old: RolloutRow, to: Transition, fence: int | None, decision: DecisionRow | None = None
    ) -> RolloutRow:
        now = self._clock()
        new = await self._do(lambda conn: transactions.carry_out(conn, old, to, now, fence, decision))
        self.moves.record(old, new, to)
        return new

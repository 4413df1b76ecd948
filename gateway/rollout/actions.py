"""What operators do to a rollout: at any gateway, in one transaction each, waiting for nothing that the controller's loop does.

A row that cannot be weighed can be paused, resumed and aborted all the same; it cannot be approved.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from feedback.database import Writer
from feedback.outages import is_outage, log_failure
from gateway.engines.deployment import Deployment, ServingView
from gateway.errors import RefusedAction
from gateway.rollout import transactions
from gateway.rollout.assessment import Assessor, describe_problem
from gateway.rollout.desired_state import read_rules
from gateway.rollout.moves import MoveCounts
from gateway.rollout.pure import machine, operator_moves
from gateway.rollout.pure.transitions import Event, Reason, Transition, find_next_phase
from gateway.tables.checkpoints import get_checkpoint, queue_checkpoint, require_startable
from gateway.tables.rollouts import active_rollout, add_event, find_promotion, get_rollout
from gateway.tables.rows import RolloutRow
from gateway.tables.serving import StaleController, get_serving

if TYPE_CHECKING:
    from gateway.engines.swap import Swap

_log = logging.getLogger(__name__)
_MOST_ATTEMPTS = 5  # to end a row that others move at the same time


class OperatorActions:
    """on_change is called when a rollout was moved. `clock` in epoch seconds."""

    def __init__(
        self,
        writer: Writer,
        swap: "Swap",
        deployment: Deployment,
        assessor: Assessor,
        moves: MoveCounts,
        on_change: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._writer, self._swap, self._deployment, self._assessor = writer, swap, deployment, assessor
        self._moves, self._on_change, self._clock = moves, on_change, clock

    async def pause(self, rollout: str, actor: str, note: str = "") -> RolloutRow:
        """Hold step and weight where they are. Raises LookupError, RefusedAction or StaleController."""
        now = self._clock()
        return await self.act(rollout, lambda row: operator_moves.pause(row, actor, now, note))

    async def resume(self, rollout: str, actor: str) -> RolloutRow:
        """Go on from where it was paused. Raises as `pause` does."""
        now = self._clock()
        return await self.act(rollout, lambda row: operator_moves.resume(row, actor, now))

    async def promote_past(self, rollout: str, actor: str, note: str) -> RolloutRow:
        """Promote whatever the gates say; note: why, in writing. Raises as `pause` does."""
        now = self._clock()
        return await self.act(rollout, lambda row: operator_moves.promote_past(row, note, actor, now))

    async def act(
        self, rollout: str, plan: Callable[[RolloutRow], Transition],
        require: Callable[[Connection, RolloutRow], None] = lambda conn, row: None,
    ) -> RolloutRow:  # fmt: skip
        """Carry out an operator's action in one transaction. Raises LookupError, RefusedAction or StaleController.

        require: refuses what the row alone does not tell.
        """

        def write(conn: Connection) -> tuple[RolloutRow, Transition, RolloutRow]:
            row = get_rollout(conn, rollout)
            if row is None:
                raise LookupError(rollout)
            to = plan(row)
            require(conn, row)
            return row, to, transactions.carry_out(conn, row, to, self._clock(), None, None)

        old, to, new = await self._writer.arun(write)
        self._moves.record(old, new, to)
        self._on_change()
        return new

    async def approve(self, rollout: str, generation: int, digest: str, actor: str) -> RolloutRow:
        """Promote what an operator saw, if the gates hold still. Raises as `act` does."""
        row, now = await self._writer.arun(lambda conn: get_rollout(conn, rollout)), self._clock()
        if row is None:
            raise LookupError(rollout)
        try:
            rules = read_rules(row)
            findings = (await self._assessor.assess(row, now)).findings
        except Exception as error:
            if is_outage(error):
                raise
            log_failure(_log, f"rollout {rollout} cannot be weighed", error)
            raise RefusedAction(f"The gates cannot be checked: {describe_problem(error)}.") from error
        # By its generation the row is the one that was weighed, or the operator saw another one.
        return await self.act(
            rollout, lambda row: operator_moves.approve(row, findings, rules, generation, digest, actor, now)
        )

    async def abort(self, rollout: str, actor: str, *, note: str = "") -> RolloutRow:
        """Take the canary out of traffic; while baking, put back what served before. Raises LookupError, RefusedAction.

        Needs neither statistics nor settings nor the loop, and is in force here when it returns.
        """
        return await self._end(rollout, lambda row: operator_moves.abort(row, actor, self._clock(), note))

    async def roll_back(self, rollout: str, actor: str, *, note: str = "") -> RolloutRow:
        """Let what served before serve again: in force here when it returns while it bakes, else once it is loaded.

        Of a rollout that promoted what serves now. Raises LookupError, RefusedAction.
        """

        def plan(row: RolloutRow) -> Transition:
            return operator_moves.roll_back(row, actor, self._clock(), note)

        return await self._end(rollout, plan, _require_newest_promotion)

    async def roll_back_last(self, policy: str, actor: str, *, note: str = "") -> RolloutRow:
        """The same of whichever rollout promoted what serves now; one that is on trial against it is aborted. Raises RefusedAction."""
        active = await self._writer.arun(lambda conn: active_rollout(conn, policy))
        if active is not None and active.phase == machine.BAKING:
            return await self.roll_back(active.id, actor, note=note)
        stable = await self._writer.arun(lambda conn: get_serving(conn, policy).stable)
        last = await self._writer.arun(lambda conn: find_promotion(conn, policy, stable or ""))
        if last is None:
            raise RefusedAction("Nothing served before what serves now.")
        if active is not None and active.phase not in (machine.ABORTING, machine.ROLLING_BACK):
            await self.abort(active.id, actor, note=f"{last.id} is rolled back")
        return await self.roll_back(last.id, actor, note=note)

    async def skip_step(self, rollout: str, actor: str) -> RolloutRow:
        """To the next step of the ramp at once. Raises as `pause` does."""
        now = self._clock()
        return await self.act(rollout, lambda row: operator_moves.skip_step(row, read_rules(row), actor, now))

    async def retry(self, rollout: str, actor: str) -> RolloutRow:
        """Put the checkpoint on trial again, as a new rollout with the evidence of this one. Raises LookupError, RefusedAction."""

        def write(conn: Connection) -> RolloutRow:
            row = get_rollout(conn, rollout)
            if row is None:
                raise LookupError(rollout)
            find_next_phase(row, Event.RETRY)
            if get_serving(conn, row.policy).stable != row.stable:
                raise RefusedAction(
                    f"{row.stable} does not serve any more: start a rollout of {row.checkpoint} instead."
                )
            require_startable(get_checkpoint(conn, row.checkpoint), row.checkpoint)
            queue_checkpoint(conn, row.checkpoint, self._clock())
            add_event(conn, row, row.phase, actor, Reason.RETRIED.value, self._clock())
            return row

        row = await self._writer.arun(write)
        self._assessor.forget(rollout)
        self._on_change()
        return row

    async def _end(
        self, rollout: str, plan: Callable[[RolloutRow], Transition],
        require: Callable[[Connection, RolloutRow], None] = lambda conn, row: None,
    ) -> RolloutRow:  # fmt: skip
        for attempt in range(_MOST_ATTEMPTS):
            try:
                row = await self.act(rollout, plan, require)
                break
            except StaleController:  # whatever else moved it, it shall end
                if attempt == _MOST_ATTEMPTS - 1:
                    raise
        if row.phase == machine.ABORTING and self._swap.is_expected(row.stable):
            self._deployment.apply(ServingView(generation=row.generation, stable=row.stable))
        return row


def _require_newest_promotion(conn: Connection, row: RolloutRow) -> None:
    """Of what serves no more nothing can be rolled back, and no two rollouts are active at once."""
    if row.phase != machine.HEALTHY:
        return
    if get_serving(conn, row.policy).stable != row.checkpoint:
        raise RefusedAction(f"{row.checkpoint} does not serve any more.")
    active = active_rollout(conn, row.policy)
    if active is not None and active.phase != machine.ABORTING:
        raise RefusedAction(f"{active.id} is on: abort it first, or roll back what serves, which does both.")

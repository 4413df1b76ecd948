"""Brings one gateway in line with the tables: loads what serves, applies the view, lets go of what has left it.

Every gateway does so, the leader too. A higher generation is applied only when all it names is loaded, and no load holds up
what else is to be applied. Nothing in the tables changes here: the controller does that.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection

from feedback.database import Writer
from gateway.engines.deployment import Deployment, ServingView
from gateway.errors import SwapError
from gateway.rollout.desired_state import build_desired_view, list_observed
from gateway.rollout.observations import Observations
from gateway.rollout.transactions import Snapshot
from gateway.settings import GatewaySettings
from gateway.tables.checkpoints import CheckpointRow, get_checkpoint
from gateway.tables.observations import load_observations
from gateway.tables.rows import RolloutRow

if TYPE_CHECKING:
    from gateway.engines.swap import Swap

_LOAD_WAIT_S = 0.5  # of a tick for a load; a quick one is done in it
_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Reconciled:
    """What came of reconciling. lacks_canary: it cannot be loaded, so that stable serves alone."""

    is_serving: bool
    lacks_canary: bool = False


class Reconciler:
    """One gateway's view of the tables. `clock` in epoch seconds.

    on_load is called when a load has ended that no tick waits for any more.
    """

    def __init__(
        self,
        writer: Writer,
        swap: "Swap",
        deployment: Deployment,
        observations: Observations,
        settings: GatewaySettings,
        clock: Callable[[], float],
        on_load: Callable[[], None],
    ) -> None:
        self._writer, self._swap, self._deployment, self._clock = writer, swap, deployment, clock
        self._observations, self._settings = observations, settings.rollout
        self._read_at = clock()
        self._named: frozenset[str] = frozenset()  # what the tables last said is served or tried
        self._left_at: dict[str, float] = {}
        self._last_load_error = ""
        self.last_swap_s: float | None = None
        self._loads: dict[str, asyncio.Task[float]] = {}  # under way
        self._refused: set[str] = set()
        self._on_load = on_load

    async def reconcile(self, snapshot: Snapshot) -> Reconciled:
        """Load what the tables say serves and apply it, stable first. snapshot: just read."""
        self._read_at = self._clock()
        self._swap.use_registered({engine.url: engine.checkpoint for engine in snapshot.engines})
        row, serving = snapshot.rollout, snapshot.serving
        on_trial = (row.checkpoint, row.stable) if row is not None else ()
        self._named = frozenset(name for name in (serving.stable, *on_trial) if name is not None)
        if serving.stable is None or not await self.load_by_id(serving.stable):
            return Reconciled(is_serving=False)
        stable_alone = ServingView(generation=serving.generation - 1, stable=serving.stable)
        if self._deployment.view.stable is None:
            self._deployment.apply(stable_alone)  # after a restart nobody waits until the canary was tried
        view = build_desired_view(serving, row)
        if view.canary is not None and not await self.load_by_id(view.canary):
            self._deployment.apply(stable_alone)
            return Reconciled(is_serving=True, lacks_canary=True)
        await self._begin_observing(view, row)
        self._deployment.apply(view)
        return Reconciled(is_serving=True)

    async def _begin_observing(self, view: ServingView, row: RolloutRow | None) -> None:
        seen = None
        if row is not None and view.observed is not None and view.observed != self._deployment.view.observed:
            rows = await self._do(lambda conn: load_observations(conn, list_observed(conn, row)))
            seen = [(o.user, o.arm, o.answered) for o in rows]
        self._observations.begin(view.observed, view.trial_weight, seen)

    # -- loading

    async def load_by_id(self, checkpoint: str) -> bool:
        """Whether a registered checkpoint is loaded, now at the latest."""
        if self._swap.is_expected(checkpoint):
            return True
        row = await self._do(lambda conn: get_checkpoint(conn, checkpoint))
        assert row is not None, checkpoint
        return await self.load(row)

    async def load(self, checkpoint: CheckpointRow) -> bool:
        """Whether a checkpoint is loaded and proven, now or within half a second; the load goes on meanwhile."""
        name = checkpoint.id
        if self._swap.is_expected(name):
            return True
        task = self._loads.get(name)
        if task is None:
            task = self._loads[name] = asyncio.create_task(self._swap.load(checkpoint))
        await asyncio.wait({task}, timeout=_LOAD_WAIT_S)
        if not task.done():
            task.add_done_callback(lambda _: self._on_load())
            return False
        self._loads.pop(name, None)
        self._refused.discard(name)
        try:
            self.last_swap_s = task.result()
        except SwapError as error:
            if str(error) != self._last_load_error:  # a starting engine refuses every half second
                _log.warning("could not load %s: %s", name, error)
            self._last_load_error = str(error)
            if not error.is_transient:
                self._refused.add(name)
            return False
        self._last_load_error = ""
        return True

    def is_refused(self, checkpoint: str) -> bool:
        """Whether its last load failed for good."""
        return checkpoint in self._refused

    def close(self) -> None:
        """Load no more."""
        for task in self._loads.values():
            task.cancel()

    # -- letting go

    def release_unnamed(self) -> None:
        """Stop keeping loaded what the tables no longer name, once it has answered its last request or is out of time."""
        now = self._clock()
        gone = self._swap.expected - self._named
        self._left_at = {name: self._left_at.get(name, now) for name in gone}
        for checkpoint in gone:
            is_late = now - self._left_at[checkpoint] >= self._settings.drain_timeout_s
            if is_late or not self._deployment.in_flight(checkpoint):
                self._swap.release(checkpoint)

    async def watch_age(self) -> None:
        """Fall back to stable whenever the tables could not be read for too long. Runs until cancelled."""
        while True:
            await asyncio.sleep(min(1.0, self._settings.silent_s / 10))
            self.check_age()

    def check_age(self) -> None:
        """Fall back to stable if the view is too old."""
        age_s = self._clock() - self._read_at
        if age_s >= self._settings.silent_s and self._deployment.fall_back():
            _log.error("the tables could not be read for %.0f s: stable serves alone", age_s)

    async def _do(self, fn: Callable[[Connection], _T]) -> _T:
        return await self._writer.arun(fn)

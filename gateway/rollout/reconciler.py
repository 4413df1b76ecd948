"""Brings one gateway in line with the tables: loads what serves, applies the view, lets go of what has left it.

Every gateway follows, the leader too. A higher generation is applied only when all it names is loaded. Nothing in the
tables changes here: the controller does that.
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
from gateway.rollout.desired_state import wanted_view
from gateway.rollout.observations import Observations
from gateway.rollout.transactions import Snapshot
from gateway.settings import GatewaySettings
from gateway.tables.checkpoints import CheckpointRow, get_checkpoint
from gateway.tables.observations import load_observations

if TYPE_CHECKING:
    from gateway.engines.swap import Swap

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@dataclass(frozen=True)
class Applied:
    """What came of following. lacks_canary: it cannot be loaded, so that stable serves alone."""

    is_serving: bool
    lacks_canary: bool = False


class Reconciler:
    """One gateway's view of the tables. `clock` in epoch seconds."""

    def __init__(
        self,
        writer: Writer,
        swap: "Swap",
        deployment: Deployment,
        observations: Observations,
        settings: GatewaySettings,
        clock: Callable[[], float],
    ) -> None:
        self._writer, self._swap, self._deployment, self._clock = writer, swap, deployment, clock
        self._observations, self._settings = observations, settings.rollout
        self._read_at = clock()
        self._named: frozenset[str] = frozenset()  # what the tables last said is served or tried
        self._left_at: dict[str, float] = {}
        self._last_load_error = ""
        self.last_swap_s: float | None = None
        self.is_refused = False  # the last load failed for good

    async def follow(self, snapshot: Snapshot) -> Applied:
        """Load what the tables say serves and apply it. snapshot: just read."""
        self._read_at = self._clock()
        self._swap.use_registered({engine.url: engine.checkpoint for engine in snapshot.engines})
        row = snapshot.rollout
        view = wanted_view(snapshot.serving, row)
        on_trial = (row.checkpoint, row.stable) if row is not None else ()
        self._named = frozenset(name for name in (view.stable, view.canary, *on_trial) if name is not None)
        if view.stable is None or not await self.load_by_id(view.stable):
            return Applied(is_serving=False)
        if view.canary is not None and not await self.load_by_id(view.canary):
            self._deployment.apply(ServingView(generation=view.generation - 1, stable=view.stable))
            return Applied(is_serving=True, lacks_canary=True)
        await self._begin_observing(view)
        self._deployment.apply(view)
        return Applied(is_serving=True)

    async def _begin_observing(self, view: ServingView) -> None:
        seen = None
        if view.rollout is not None and view.rollout != self._deployment.view.rollout:
            rows = await self._do(lambda conn: load_observations(conn, view.rollout or ""))
            seen = [(o.user, o.arm, o.paired) for o in rows]
        self._observations.begin(view.rollout, view.weight, seen)

    # -- loading

    async def load_by_id(self, checkpoint: str) -> bool:
        """Whether a registered checkpoint is loaded, now at the latest."""
        if self._swap.wants(checkpoint):
            return True
        row = await self._do(lambda conn: get_checkpoint(conn, checkpoint))
        assert row is not None, checkpoint
        return await self.load(row)

    async def load(self, checkpoint: CheckpointRow) -> bool:
        """Load and prove a checkpoint; False, with the reason in the log, if that failed."""
        if self._swap.wants(checkpoint.id):
            return True
        try:
            self.last_swap_s = await self._swap.load(checkpoint)
        except SwapError as error:
            if str(error) != self._last_load_error:  # a starting engine refuses every half second
                _log.warning("could not load %s: %s", checkpoint.id, error)
            self._last_load_error = str(error)
            self.is_refused = not error.is_transient
            return False
        self._last_load_error = ""
        return True

    # -- letting go

    def let_go(self) -> None:
        """Stop keeping loaded what the tables no longer name, once it has answered its last request or is out of time."""
        now = self._clock()
        gone = self._swap.wanted - self._named
        self._left_at = {name: self._left_at.get(name, now) for name in gone}
        for checkpoint in gone:
            is_late = now - self._left_at[checkpoint] >= self._settings.drain_timeout_s
            if is_late or not self._deployment.in_flight(checkpoint):
                self._swap.forget(checkpoint)

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

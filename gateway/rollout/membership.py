"""The gateways that share one database: what each still serves, who is alive, and which one leads.

Every gateway reports the generation it applied, its requests in flight and the checkpoints it keeps loaded, twice a second.
The leader runs the rollout controller: it holds a lease, and a fence that rises with every new leader, so that one that
was asleep changes nothing. The gateways' clocks must agree to within the lease.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from feedback.database import Writer
from feedback.errors import FeedbackError
from feedback.outages import log_failure
from gateway.tables.gateways import (
    Report,
    clear_reports,
    delete_silent,
    list_reports,
    store_departure,
    store_report,
    take_lease,
)

if TYPE_CHECKING:
    from gateway.engines.deployment import Deployment
    from gateway.engines.swap import Swap
    from gateway.settings import GatewaySettings

logger = logging.getLogger("gateway.membership")

_FORGET_AFTER_S = 3600.0


@dataclass(frozen=True)
class UnloadBlockers:
    """Live gateways that keep a checkpoint from being unloaded, by the reason."""

    behind: list[str]  # serve by an older generation, and so may send it requests still
    expecting: list[str]  # would load it again
    answering: list[str]  # have requests in flight on it

    def __bool__(self) -> bool:
        return bool(self.behind or self.expecting or self.answering)


def find_unload_blockers(
    reports: Sequence[Report], checkpoint: str, generation: int, now: float, silent_s: float
) -> UnloadBlockers:
    """Who keeps the checkpoint, which left the view with `generation` at the latest. The silent ones are gone."""
    live = [report for report in reports if now - report.seen_at < silent_s]
    return UnloadBlockers(
        behind=[report.id for report in live if report.generation < generation],
        expecting=[report.id for report in live if checkpoint in report.expected],
        answering=[report.id for report in live if report.in_flight.get(checkpoint)],
    )


class Membership:
    """This gateway among the others. `join` once, `run`, and `leave` at the end."""

    def __init__(
        self,
        writer: Writer,
        deployment: Deployment,
        swap: Swap,
        settings: GatewaySettings,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.id = secrets.token_hex(8)
        self._writer, self._deployment, self._swap, self._clock = writer, deployment, swap, clock
        self._policy, self._settings = settings.policy, settings.rollout
        self._others: list[Report] = []
        self._fence: int | None = None
        self._leads_until = 0.0

    @property
    def fence(self) -> int | None:
        """What the leader writes under; None while this gateway does not lead, or could not renew its lease."""
        return self._fence if self._clock() < self._leads_until else None

    def describe(self) -> Report:
        """This gateway as it is now."""
        view = self._deployment.view
        return Report(self.id, view.generation, self._deployment.all_in_flight(), self._swap.held, self._clock())

    def list_live(self) -> list[Report]:
        """This gateway as it is now, and the others that are alive, as of the last beat."""
        now = self._clock()
        return [self.describe(), *(r for r in self._others if now - r.seen_at < self._settings.silent_s)]

    def find_unload_blockers(self, checkpoint: str, generation: int) -> UnloadBlockers:
        """Which live gateways keep a checkpoint that left the view with `generation` at the latest."""
        return find_unload_blockers(self.list_live(), checkpoint, generation, self._clock(), self._settings.silent_s)

    async def join(self, *, is_alone: bool) -> None:
        """Report for the first time. is_alone: no other process shares the database, so what is left of any is dead."""
        if is_alone:
            await self._writer.arun(clear_reports)
        await self.send_heartbeat()

    async def send_heartbeat(self) -> None:
        """Report, renew the lease or take one that has run out, and read what the others said."""
        now, report = self._clock(), self.describe()

        def write(conn: Connection) -> tuple[int | None, list[Report]]:
            store_report(conn, report)
            fence = take_lease(conn, self._policy, self.id, now, self._settings.lease_s)
            if fence is not None:
                delete_silent(conn, now - _FORGET_AFTER_S)
            return fence, list_reports(conn)

        fence, reports = await self._writer.arun(write)
        if fence is not None and self._fence is None:
            logger.info("gateway %s leads, fence %d", self.id, fence)
        self._fence, self._leads_until = fence, now + self._settings.lease_s
        self._others = [other for other in reports if other.id != self.id]

    async def run(self) -> None:
        """Beat until cancelled; a failing beat is logged and tried again."""
        while True:
            await asyncio.sleep(self._settings.report_s)
            try:
                await self.send_heartbeat()
            except Exception as error:
                log_failure(logger, "the gateway could not report", error)

    async def leave(self) -> None:
        """Say that this gateway is gone, and let another one lead at once; without a database its lease runs out."""
        self._leads_until = 0.0
        try:
            await self._writer.arun(lambda conn: store_departure(conn, self._policy, self.id))
        except (FeedbackError, SQLAlchemyError) as error:
            logger.warning("left without a word: %s", error)

"""Tells receivers of rollouts' transitions, from the audit trail in the database.

At least once each and in order: a cursor in the database moves after a receiver has taken a notice, so a restart repeats and
never loses. The leading gateway sends. Every receiver has a task of its own: one that hangs holds up neither the others nor the
controller, which does not know of notices.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter

from feedback.database import Writer
from feedback.outages import log_failure
from gateway.notices.cursor import has_news, move_cursor, open_cursor, read_next
from gateway.notices.message import Transition
from gateway.notices.receiver import NotTaken, Receiver
from gateway.sections.notices import NoticesSection
from gateway.tables.serving import StaleController

if TYPE_CHECKING:
    import httpx

    from gateway.rollout.membership import Membership

logger = logging.getLogger("gateway.notices")

_LOOK_S = 0.5
_FIRST_BACKOFF_S = 1.0
OUTCOMES = ("sent", "failed", "dropped")


class Notifier:
    """look_s: pause between looks at the audit trail. clock: epoch seconds."""

    def __init__(
        self,
        writer: Writer,
        membership: Membership,
        settings: NoticesSection,
        policy: str,
        registry: CollectorRegistry,
        *,
        clock: Callable[[], float] = time.time,
        look_s: float = _LOOK_S,
        first_backoff_s: float = _FIRST_BACKOFF_S,
    ) -> None:
        self._writer, self._membership, self._settings, self._policy = writer, membership, settings, policy
        self._clock, self._look_s, self._first_backoff_s = clock, look_s, first_backoff_s
        self.receivers = [Receiver(target, settings, policy, clock) for target in settings.targets]
        counter = Counter("prefloop_notices", "Notices by how sending them ended.", ["outcome"], registry=registry)
        self._num_by_outcome = {outcome: counter.labels(outcome) for outcome in OUTCOMES}

    async def run(self) -> None:
        """Send until cancelled."""
        import httpx  # here: who tells nobody over HTTP need not wait for it

        logging.getLogger("httpx").setLevel(logging.WARNING)  # its lines hold whole URLs, and Slack's are secrets
        async with httpx.AsyncClient(timeout=self._settings.timeout_s) as client, asyncio.TaskGroup() as group:
            for receiver in self.receivers:
                group.create_task(self._serve(receiver, client))

    async def _serve(self, receiver: Receiver, client: httpx.AsyncClient) -> None:
        is_opened = False
        while True:
            try:
                if not is_opened:  # by whichever gateway: from now on, nothing is missed
                    await self._writer.arun(lambda conn: open_cursor(conn, receiver.key))
                    is_opened = True
                await self._send_due(receiver, client)
            except StaleController:
                pass  # another gateway leads, and sends
            except Exception as error:
                log_failure(logger, f"notices for {receiver.name} could not be read", error)
            await asyncio.sleep(self._look_s)

    async def _send_due(self, receiver: Receiver, client: httpx.AsyncClient) -> None:
        """Send what the receiver has not heard of. Raises StaleController."""
        fence = self._membership.fence
        if fence is None or not await self._writer.aread(lambda conn: has_news(conn, receiver.key)):
            return
        due = await self._writer.arun(lambda conn: read_next(conn, self._policy, fence, receiver.key))
        passed = 0
        for it in due:
            if it.to_phase in receiver.phases:
                if not await self._send(receiver, client, it, fence):
                    break
                await self._move(receiver, it.event, fence)
                passed = 0
            else:
                passed = it.event
        if passed:
            await self._move(receiver, passed, fence)

    async def _move(self, receiver: Receiver, event: int, fence: int) -> None:
        await self._writer.arun(lambda conn: move_cursor(conn, self._policy, fence, receiver.key, event))

    async def _send(self, receiver: Receiver, client: httpx.AsyncClient, it: Transition, fence: int) -> bool:
        """Send one until it is taken or too old; False if this gateway leads no more."""
        pause_s = self._first_backoff_s
        while True:
            try:
                async with asyncio.timeout(self._settings.timeout_s):
                    await receiver.send(client, it)
            except (NotTaken, TimeoutError) as error:
                why = str(error) or f"no answer within {self._settings.timeout_s:g} s"
            else:
                self._num_by_outcome["sent"].inc()
                return True
            self._num_by_outcome["failed"].inc()
            if self._clock() - it.at >= self._settings.give_up_s:
                self._num_by_outcome["dropped"].inc()
                logger.error("notice %s is too old and dropped: %s did not take it: %s", it.id, receiver.name, why)
                return True
            logger.warning("%s did not take notice %s: %s; again in %.0f s", receiver.name, it.id, why, pause_s)
            await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            pause_s = min(2 * pause_s, self._settings.max_backoff_s)
            if self._membership.fence != fence:
                return False

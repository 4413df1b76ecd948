"""Holds keys to their limits, on the hot path from memory: each gateway spends what it has leased from the table.

Over all gateways no more requests pass than a window's limit. Tokens and money are known afterwards: a request passes
while any are left, so what is in flight may overshoot. A request that finds no lease waits for one transaction, and is
refused only if that finds nothing left (believed for a second); what another gateway does not use is back in seconds. While the
database cannot be asked, keys with limits get 503 once their leases are spent. The
clocks of gateways should agree.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import attrgetter

from feedback.database import Writer
from feedback.outages import log_failure
from gateway.access.keys import Identity
from gateway.access.limits.allowance import Allowance, KeyLimits
from gateway.access.limits.leases import NANO, Grant, LeaseRequest, Window
from gateway.access.limits.usage import exchange_leases, forget_usage
from gateway.errors import ApiError, unavailable
from gateway.http.eager import enter_task
from gateway.sections.serving import GatewaySection

logger = logging.getLogger("gateway.limits")

_TICK_S = 0.25
_EXCHANGED_AT_ONCE = 200  # allowances in one transaction
_MAINTAINED_AT_ONCE = 50  # allowances that a tick looks at before it lets requests through
_SWEEP_S = 600.0
_FORGET_S = 3600.0


class Limits:
    """Admits and settles; `writer` may be the gateway's on SQLite, on PostgreSQL it must be one of its own.

    There each transaction holds rows until its commit, and other work in the same one could close a circle of waiting.
    Belongs to one event loop. `now` is in epoch seconds; `clock` is for what is called without it.
    """

    def __init__(
        self,
        writer: Writer,
        settings: GatewaySection,
        *,
        clock: Callable[[], float] = time.time,
        max_wait_s: float = 4.0,  # longest wait of one request for a lease; shorter than the windows' jitter
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._max_wait_s = max_wait_s
        self._prompt_nano = settings.price_per_million_prompt_tokens * NANO / 1_000_000  # per token
        self._completion_nano = settings.price_per_million_completion_tokens * NANO / 1_000_000
        self._allowances: dict[str, Allowance] = {}
        self._due: set[Allowance] = set()  # what to ask for in the next transaction
        # Likewise; without a window: what is handed back or owed.
        self._pending: list[tuple[Window | None, LeaseRequest]] = []
        self._exchanging: asyncio.Task[bool] | None = None
        self._next_sweep = clock() + _SWEEP_S
        self.num_refused = 0
        self.num_waited = 0
        self.num_failures = 0

    # -- the hot path

    def try_admit(self, identity: Identity, now: float) -> bool | None:
        """True: the request may pass and is counted; False: raise `refusal`; None: await `admit` instead."""
        limits = identity.limits
        if limits is None:
            return True
        allowance = self._allowances.get(identity.key_id)
        if allowance is None or allowance.limits is not limits or not allowance.since <= now < allowance.until:
            allowance = self._open_allowance(identity.key_id, limits, now)
        allowance.is_active = allowance.is_used = True
        if (allowance.requests > 0 and allowance.tokens > 0 and allowance.budget > 0) or allowance.fill():
            allowance.requests -= 1
            return True
        return self._refuse_if_exhausted(allowance)

    def header_lines(self, identity: Identity, now: float) -> bytes:
        """`x-ratelimit-…` lines as in OpenAI's answers, each with its CRLF; empty without limits."""
        limits = identity.limits
        if limits is None:
            return b""
        allowance = self._allowances.get(identity.key_id)
        if allowance is None:
            allowance = self._open_allowance(identity.key_id, limits, now)
        return allowance.render_headers(now)

    def settle(self, identity: Identity, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what an answer cost, in the windows of the moment it ended."""
        limits = identity.limits
        if limits is None:
            return
        now = self._clock()
        allowance = self._allowances.get(identity.key_id)
        if allowance is None or not allowance.since <= now < allowance.until:
            allowance = self._find_allowance(identity.key_id, limits, now)
        allowance.is_active = True
        allowance.tokens -= prompt_tokens + completion_tokens
        allowance.budget -= round(prompt_tokens * self._prompt_nano + completion_tokens * self._completion_nano)

    # -- the rare path

    async def admit(self, identity: Identity, now: float, log_fields: Mapping[str, str] | None = None) -> None:
        """Wait for a lease. Raises ApiError: 429 when a limit is used up, 503 when the database cannot be asked.

        `log_fields`: what a log line about the request carries.
        """
        await enter_task()
        try:
            async with asyncio.timeout(self._max_wait_s):
                while (is_admitted := self.try_admit(identity, now)) is None:
                    await self._wait_for_lease(self._allowances[identity.key_id])
                    if (allowance := self._allowances.get(identity.key_id)) is not None:  # its limits may have changed
                        identity = replace(identity, limits=allowance.limits)
        except TimeoutError:
            self.num_failures += 1
            logger.error("key %s waited %.1f s for a lease", identity.key_id, self._max_wait_s, extra=log_fields)
            raise _unknown() from None
        if not is_admitted:
            raise self.refusal(identity, now)

    def refusal(self, identity: Identity, now: float) -> ApiError:
        """The 429 for a request that was not admitted, with Retry-After and the headers."""
        if identity.limits is None:
            raise ValueError("a key without limits is never refused")
        return self._find_allowance(identity.key_id, identity.limits, now).make_refusal(now)

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                await self.tick(self._clock())
            except Exception as error:
                self.num_failures += 1
                log_failure(logger, "the limits' loop failed", error)

    async def tick(self, now: float) -> None:
        """Top up leases that run low, hand back those that are not used, enter new windows."""
        for index, allowance in enumerate(list(self._allowances.values())):
            if index % _MAINTAINED_AT_ONCE == _MAINTAINED_AT_ONCE - 1:
                await asyncio.sleep(0)
            if self._allowances.get(allowance.key_id) is not allowance:
                continue
            if allowance.is_active:
                self._maintain(allowance, now)
            elif now >= allowance.until + _FORGET_S:
                del self._allowances[allowance.key_id]
        await self._exchange_due()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            await self._writer.arun(lambda conn: forget_usage(conn, now))

    async def close(self) -> None:
        """Hand back every lease. Stop `run` before, and the writer after."""
        if self._exchanging is not None:
            await self._exchanging
        for allowance in self._allowances.values():
            self._book(allowance.close())
        self._allowances.clear()
        self._due.clear()
        await self._exchange_due()

    # -- allowances of keys

    def _open_allowance(self, key_id: str, limits: KeyLimits, now: float) -> Allowance:
        """The key's allowance, with these limits and in the windows of `now`."""
        allowance = self._allowances.get(key_id)
        if allowance is not None and allowance.limits != limits:
            self._book(allowance.close())
            allowance = None
        if allowance is None:
            allowance = self._allowances[key_id] = Allowance(key_id, limits, now)
        allowance.limits = limits  # the same object next time: compared by identity on the hot path
        return self._enter_windows(allowance, now)

    def _find_allowance(self, key_id: str, limits: KeyLimits, now: float) -> Allowance:
        """The same, but it keeps its limits: a request in flight may hold older ones."""
        allowance = self._allowances.get(key_id)
        if allowance is None:
            return self._open_allowance(key_id, limits, now)
        return allowance if allowance.since <= now < allowance.until else self._enter_windows(allowance, now)

    def _enter_windows(self, allowance: Allowance, now: float) -> Allowance:
        if not allowance.since <= now < allowance.until:
            self._book(allowance.roll(now))
        return allowance

    def _refuse_if_exhausted(self, allowance: Allowance) -> bool | None:
        """Some lease is spent: False if its limit is known to be used up, else None."""
        if not allowance.is_exhausted:
            return None
        self.num_refused += 1
        return False

    def _maintain(self, allowance: Allowance, now: float) -> None:
        self._enter_windows(allowance, now)
        is_used, allowance.is_used = allowance.is_used, False
        for window in allowance.windows:
            surplus, ahead = window.measure_pace(is_used=is_used), window.request_ahead(now)
            if surplus is not None:
                self._pending.append((None, surplus))
            if ahead is not None:
                self._pending.append((window, ahead))
        if any(window.request(0) is not None for window in allowance.windows):
            self._due.add(allowance)
        elif allowance.is_idle:
            allowance.is_active = False

    def _book(self, requests: list[LeaseRequest]) -> None:
        self._pending += [(None, request) for request in requests]

    # -- transactions

    async def _wait_for_lease(self, allowance: Allowance) -> None:
        allowance.num_waiting += 1
        self.num_waited += 1
        self._due.add(allowance)
        try:
            if not await asyncio.shield(self._start_exchange()):
                raise _unknown()
        finally:
            allowance.num_waiting -= 1

    def _start_exchange(self) -> asyncio.Task[bool]:
        """One transaction at a time; who comes while it runs waits for it, and asks again."""
        if self._exchanging is None or self._exchanging.done():
            self._exchanging = asyncio.create_task(self._exchange())
        return self._exchanging

    async def _exchange_due(self) -> None:
        """As many transactions as what is due now needs; requests may make more due meanwhile."""
        for _ in range(2 + len(self._due) // _EXCHANGED_AT_ONCE):  # one may have been running
            if not (self._pending or self._due) or not await asyncio.shield(self._start_exchange()):
                return

    async def _exchange(self) -> bool:
        """Ask for what is due in one transaction; False if it failed, which is logged and counted."""
        allowances = sorted(self._due, key=attrgetter("num_waiting"), reverse=True)[:_EXCHANGED_AT_ONCE]
        self._due.difference_update(allowances)
        pending, self._pending = self._pending, []
        for allowance in allowances:
            requests = ((window, window.request(allowance.num_waiting)) for window in allowance.windows)
            pending += [(window, request) for window, request in requests if request is not None]
        if not pending:
            return True
        try:
            grants = await self._writer.arun(lambda conn: exchange_leases(conn, [request for _, request in pending]))
        except Exception as error:
            self.num_failures += 1
            log_failure(logger, f"{len(pending)} leases could not be exchanged", error)
            self._repeat_debts(pending)
            return False
        self._take(pending, grants)
        return True

    def _take(self, pending: list[tuple[Window | None, LeaseRequest]], grants: list[Grant]) -> None:
        for (window, request), grant in zip(pending, grants, strict=True):
            late = None if window is None else window.take(request, grant)
            if late is not None:
                self._pending.append((None, late))

    def _repeat_debts(self, pending: list[tuple[Window | None, LeaseRequest]]) -> None:
        """The transaction may have committed all the same: repeat what only takes, never what gives back."""
        now = self._clock()
        self._pending += [each for each in pending if each[0] is None and each[1].owed > 0 and now < each[1].ends_at]


def _unknown() -> ApiError:
    return unavailable("The limits of this key could not be checked; ask again.")

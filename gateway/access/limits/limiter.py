"""Holds keys to their limits, on the hot path from memory: each worker spends what it has leased from the table.

Over all workers no more requests pass than a window's limit. Tokens and money are known afterwards: a request passes
while any are left, so what is in flight may overshoot. A request that finds no lease waits for one transaction, and is
refused only if that finds nothing left (believed for a second); what another worker does not use is back in seconds. While the
database cannot be asked, keys with limits get 503 once their leases are spent. Workers' clocks should agree.
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
from gateway.access.limits.account import Account
from gateway.access.limits.allowance import NANO, Ask, Grant, KeyLimits, Meter
from gateway.access.limits.usage import exchange_leases, forget_usage
from gateway.errors import ApiError, unavailable
from gateway.http.eager import enter_task
from gateway.settings import GatewaySection

logger = logging.getLogger("gateway.limits")

_TICK_S = 0.25
_EXCHANGED_AT_ONCE = 200  # accounts in one transaction
_TENDED_AT_ONCE = 50  # accounts that a tick looks at before it lets requests through
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
        patience_s: float = 4.0,  # longest wait of one request for a lease; shorter than the meters' jitter
    ) -> None:
        self._writer = writer
        self._clock = clock
        self._patience_s = patience_s
        self._prompt_nano = settings.price_per_million_prompt_tokens * NANO / 1_000_000  # per token
        self._completion_nano = settings.price_per_million_completion_tokens * NANO / 1_000_000
        self._accounts: dict[str, Account] = {}
        self._hungry: set[Account] = set()  # what to ask for in the next transaction
        self._orders: list[tuple[Meter | None, Ask]] = []  # likewise; without a meter: what is handed back or owed
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
        account = self._accounts.get(identity.key_id)
        if account is None or account.limits is not limits or not account.since <= now < account.until:
            account = self._open_account(identity.key_id, limits, now)
        account.is_awake = account.is_used = True
        requests = account.requests
        if (requests.left > 0 and account.tokens.left > 0 and account.budget.left > 0) or account.fill():
            requests.left -= 1
            return True
        return self._look_closer(account)

    def header_lines(self, identity: Identity, now: float) -> bytes:
        """`x-ratelimit-…` lines as in OpenAI's answers, each with its CRLF; empty without limits."""
        limits = identity.limits
        if limits is None:
            return b""
        account = self._accounts.get(identity.key_id)
        if account is None:
            account = self._open_account(identity.key_id, limits, now)
        return account.render_headers(now)

    def settle(self, identity: Identity, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what an answer cost, in the windows of the moment it ended."""
        limits = identity.limits
        if limits is None:
            return
        now = self._clock()
        account = self._accounts.get(identity.key_id)
        if account is None or not account.since <= now < account.until:
            account = self._find_account(identity.key_id, limits, now)
        account.is_awake = True
        account.tokens.left -= prompt_tokens + completion_tokens
        account.budget.left -= round(prompt_tokens * self._prompt_nano + completion_tokens * self._completion_nano)

    # -- the rare path

    async def admit(self, identity: Identity, now: float, log_fields: Mapping[str, str] | None = None) -> None:
        """Wait for a lease. Raises ApiError: 429 when a limit is used up, 503 when the database cannot be asked.

        `log_fields`: what a log line about the request carries.
        """
        await enter_task()
        try:
            async with asyncio.timeout(self._patience_s):
                while (is_admitted := self.try_admit(identity, now)) is None:
                    await self._wait_for_lease(self._accounts[identity.key_id])
                    if (account := self._accounts.get(identity.key_id)) is not None:  # its limits may have changed
                        identity = replace(identity, limits=account.limits)
        except TimeoutError:
            self.num_failures += 1
            logger.error("key %s waited %.1f s for a lease", identity.key_id, self._patience_s, extra=log_fields)
            raise _unknown() from None
        if not is_admitted:
            raise self.refusal(identity, now)

    def refusal(self, identity: Identity, now: float) -> ApiError:
        """The 429 for a request that was not admitted, with Retry-After and the headers."""
        if identity.limits is None:
            raise ValueError("a key without limits is never refused")
        return self._find_account(identity.key_id, identity.limits, now).make_refusal(now)

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
        for index, account in enumerate(list(self._accounts.values())):
            if index % _TENDED_AT_ONCE == _TENDED_AT_ONCE - 1:
                await asyncio.sleep(0)
            if self._accounts.get(account.key_id) is not account:
                continue
            if account.is_awake:
                self._tend(account, now)
            elif now >= account.until + _FORGET_S:
                del self._accounts[account.key_id]
        await self._exchange_due()
        if now >= self._next_sweep:
            self._next_sweep = now + _SWEEP_S
            await self._writer.arun(lambda conn: forget_usage(conn, now))

    async def close(self) -> None:
        """Hand back every lease. Stop `run` before, and the writer after."""
        if self._exchanging is not None:
            await self._exchanging
        for account in self._accounts.values():
            self._book(account.close())
        self._accounts.clear()
        self._hungry.clear()
        await self._exchange_due()

    # -- accounts

    def _open_account(self, key_id: str, limits: KeyLimits, now: float) -> Account:
        """The key's account, with these limits and in the windows of `now`."""
        account = self._accounts.get(key_id)
        if account is not None and account.limits != limits:
            self._book(account.close())
            account = None
        if account is None:
            account = self._accounts[key_id] = Account(key_id, limits, now)
        account.limits = limits  # the same object next time: compared by identity on the hot path
        return self._enter_windows(account, now)

    def _find_account(self, key_id: str, limits: KeyLimits, now: float) -> Account:
        """The same, but an account keeps its limits: a request in flight may hold older ones."""
        account = self._accounts.get(key_id)
        if account is None:
            return self._open_account(key_id, limits, now)
        return account if account.since <= now < account.until else self._enter_windows(account, now)

    def _enter_windows(self, account: Account, now: float) -> Account:
        if not account.since <= now < account.until:
            self._book(account.roll(now))
        return account

    def _look_closer(self, account: Account) -> bool | None:
        """Some lease is spent: False if its limit is known to be used up, else None."""
        if not account.is_exhausted:
            return None
        self.num_refused += 1
        return False

    def _tend(self, account: Account, now: float) -> None:
        self._enter_windows(account, now)
        is_used, account.is_used = account.is_used, False
        for meter in account.meters:
            surplus, ahead = meter.measure_pace(is_used=is_used), meter.ask_ahead(now)
            if surplus is not None:
                self._orders.append((None, surplus))
            if ahead is not None:
                self._orders.append((meter, ahead))
        if any(meter.ask(0) is not None for meter in account.meters):
            self._hungry.add(account)
        elif account.is_idle:
            account.is_awake = False

    def _book(self, asks: list[Ask]) -> None:
        self._orders += [(None, ask) for ask in asks]

    # -- transactions

    async def _wait_for_lease(self, account: Account) -> None:
        account.num_waiting += 1
        self.num_waited += 1
        self._hungry.add(account)
        try:
            if not await asyncio.shield(self._start_exchange()):
                raise _unknown()
        finally:
            account.num_waiting -= 1

    def _start_exchange(self) -> asyncio.Task[bool]:
        """One transaction at a time; who comes while it runs waits for it, and asks again."""
        if self._exchanging is None or self._exchanging.done():
            self._exchanging = asyncio.create_task(self._exchange())
        return self._exchanging

    async def _exchange_due(self) -> None:
        """As many transactions as what is due now needs; requests may make more due meanwhile."""
        for _ in range(2 + len(self._hungry) // _EXCHANGED_AT_ONCE):  # one may have been running
            if not (self._orders or self._hungry) or not await asyncio.shield(self._start_exchange()):
                return

    async def _exchange(self) -> bool:
        """Ask for what is due in one transaction; False if it failed, which is logged and counted."""
        accounts = sorted(self._hungry, key=attrgetter("num_waiting"), reverse=True)[:_EXCHANGED_AT_ONCE]
        self._hungry.difference_update(accounts)
        orders, self._orders = self._orders, []
        for account in accounts:
            asks = ((meter, meter.ask(account.num_waiting)) for meter in account.meters)
            orders += [(meter, ask) for meter, ask in asks if ask is not None]
        if not orders:
            return True
        try:
            grants = await self._writer.arun(lambda conn: exchange_leases(conn, [ask for _, ask in orders]))
        except Exception as error:
            self.num_failures += 1
            log_failure(logger, f"{len(orders)} leases could not be exchanged", error)
            self._keep_debts(orders)
            return False
        self._take(orders, grants)
        return True

    def _take(self, orders: list[tuple[Meter | None, Ask]], grants: list[Grant]) -> None:
        for (meter, ask), grant in zip(orders, grants, strict=True):
            late = None if meter is None else meter.take(ask, grant)
            if late is not None:
                self._orders.append((None, late))

    def _keep_debts(self, orders: list[tuple[Meter | None, Ask]]) -> None:
        """The transaction may have committed all the same: repeat what only takes, never what gives back."""
        now = self._clock()
        self._orders += [order for order in orders if order[0] is None and order[1].owed > 0 and now < order[1].ends_at]


def _unknown() -> ApiError:
    return unavailable("The limits of this key could not be checked; ask again.")

"""The client to the engines: our own small HTTP/1.1 over pooled keep-alive connections.

Promises: one write a request, no task and no timer of its own; a request fails before its first byte
(EngineUnavailable, TimeoutError) or after it (EngineInterrupted), never silently; closing an answer that is not
complete closes its connection, which makes the engine stop generating. Does not retry, but for a pooled connection
that the engine had closed meanwhile: attempts.py does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.errors import EngineInterrupted, EngineLost, EngineUnavailable, StaleConnection
from gateway.http.connection import EngineAnswer
from gateway.http.outbox import Outbox
from gateway.http.pool import Pool
from gateway.sections.serving import GatewaySection

_SWEEP_S = 0.25
_MAX_OWN_CONNECTIONS = 16  # to one engine, for our own calls: more than are ever made at once


class Upstream:
    """Requests to engines. `run` must run: it keeps the deadlines.

    on_lost is called with an engine that closed a connection of our own calls while nothing was asked over it: as it ends, its
    system closes them all at once.
    """

    def __init__(self, settings: GatewaySection) -> None:
        self._max_connections = settings.max_upstream_connections
        self._whole_timeouts_s = settings.answer_timeout_s, settings.answer_timeout_s  # to the first byte, between two
        self._stream_timeouts_s = settings.first_byte_timeout_s, settings.idle_timeout_s
        self._outbox = Outbox()
        self._pools: dict[str, Pool] = {}
        self.on_lost: Callable[[str], None] = lambda engine: None
        self._own_pools: dict[str, Pool] = {}  # for our own calls, which must not wait behind requests

    async def run(self) -> None:
        """Look at the deadlines for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_SWEEP_S)
            for pool in self._all_pools():
                pool.sweep(loop.time())

    def close(self) -> None:
        """Drop every connection."""
        for pool in self._all_pools():
            pool.close()

    def begin(self, engine: str, path: bytes, body: bytes, *, headers: bytes = b"") -> EngineAnswer | None:
        """Send a request for a whole answer in this very step; None if no connection is idle. `headers`: whole lines."""
        pool = self._pools.get(engine)
        connection = None if pool is None else pool.take_idle()
        if pool is None or connection is None:
            return None
        data = pool.render(b"POST", path, headers, body)
        return connection.send(data, self._whole_timeouts_s, is_stream=False)

    async def post(
        self,
        engine: str,
        path: bytes,
        body: bytes,
        *,
        is_stream: bool,
        headers: bytes = b"",
        begun: EngineAnswer | None = None,
    ) -> EngineAnswer:
        """Send a request; its answer once complete or, of a stream that begins well, once its first bytes are there.

        `begun`: what `begin` returned for the same request. Raises EngineUnavailable, EngineInterrupted, TimeoutError.
        """
        pool = self._find_pool(engine)
        timeouts_s = self._stream_timeouts_s if is_stream else self._whole_timeouts_s
        return await _ask(pool, pool.render(b"POST", path, headers, body), timeouts_s, is_stream, begun)

    def drop_waiting(self, engine: str) -> None:
        """Fail the engine's requests that have not had their first byte."""
        if engine in self._pools:
            self._pools[engine].drop_waiting()

    def forget(self, engine: str) -> None:
        """The engine is gone for good: keep nothing of it. No request to it may be in flight."""
        for pools in (self._pools, self._own_pools):
            if (pool := pools.pop(engine, None)) is not None:
                pool.close()

    async def call(
        self, engine: str, path: str, payload: dict[str, Any] | None, *, timeout_s: float, token: str = ""
    ) -> tuple[int, bytes]:
        """A short call of our own (adapters, probes): POST with a payload, GET without. Raises EngineUnavailable.

        token: sent as the bearer's.

        Has connections of its own beside the limit: how an engine does must be known while requests use all of theirs.
        """
        method = b"GET" if payload is None else b"POST"
        body = b"" if payload is None else msgspec.json.encode(payload)
        pool = self._find_pool(engine, is_own=True)
        headers = f"authorization: Bearer {token}\r\n".encode() if token else b""
        data = pool.render(method, path.encode(), headers, body)
        try:
            async with asyncio.timeout(timeout_s):
                answer = await _ask(pool, data, (timeout_s, timeout_s), False)
        except (EngineInterrupted, TimeoutError) as error:
            raise EngineUnavailable(f"{engine}: {str(error) or 'no answer in time'}") from error
        return answer.status, answer.body

    def _find_pool(self, engine: str, *, is_own: bool = False) -> Pool:
        pools = self._own_pools if is_own else self._pools
        pool = pools.get(engine)
        if pool is None:
            limit = _MAX_OWN_CONNECTIONS if is_own else self._max_connections
            on_lost = (lambda: self.on_lost(engine)) if is_own else (lambda: None)
            pool = pools[engine] = Pool(engine, limit, asyncio.get_running_loop(), self._outbox, on_lost)
        return pool

    def _all_pools(self) -> list[Pool]:
        return [*self._pools.values(), *self._own_pools.values()]


async def _ask(
    pool: Pool, data: bytes, timeouts_s: tuple[float, float], is_stream: bool, begun: EngineAnswer | None = None
) -> EngineAnswer:
    answer = begun
    try:
        if answer is None:
            answer = (await pool.take()).send(data, timeouts_s, is_stream=is_stream)
        try:
            await answer.wait_until_started()
        except StaleConnection:  # the engine closed it between two requests
            try:
                connection = await pool.connect()
            except EngineUnavailable as error:  # it did not only close it
                raise EngineLost(str(error)) from error
            answer = connection.send(data, timeouts_s, is_stream=is_stream)
            await answer.wait_until_started()
        return answer
    except BaseException:
        if answer is not None:
            answer.close()
        raise

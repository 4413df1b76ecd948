"""Watches requests on their way, for traces and for the access log: a Call that notes how it is answered.

While both are off the server makes plain Calls, and what the hot path pays is a look at `call.watch`. Nothing here
waits; notes hold no prompt, no answer and no user.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from gateway.errors import MissingExtra
from gateway.http.call import Call, CallMaker, Handler
from gateway.http.protocol import ServingProtocol
from gateway.serving.exchange import CLIENT_GONE
from gateway.telemetry.access import AccessLine, AccessLog

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gateway.access.keys import Identity
    from gateway.serving.exchange import Exchange
    from gateway.serving.routing import Route
    from gateway.settings import GatewaySection
    from gateway.telemetry.tracing import Attempt, RequestTrace, Tracing

_EXPORTER = "opentelemetry.exporter.otlp.proto.http"


class Watch:
    """What is noted of one request. Times in ns: `started_at` since 1970, `started` and `ended` on the monotonic clock."""

    __slots__ = (
        "comparison", "ended", "first_ns", "identity", "is_broken", "is_gone", "is_paired", "is_stream", "model",
        "num_bytes", "path", "route", "started", "started_at", "status", "trace", "usage", "wants_usage",
    )  # fmt: skip

    def __init__(self, path: str) -> None:
        self.path = path
        self.started_at = time.time_ns()
        self.started = self.ended = time.monotonic_ns()
        self.first_ns: int | None = None  # of a stream, from its start
        self.status = 0  # what was sent
        self.num_bytes = 0
        self.is_stream = self.is_paired = self.is_gone = self.is_broken = self.wants_usage = False
        self.identity: Identity | None = None
        self.model = ""
        self.route: Route | None = None
        self.comparison = ""
        self.usage = b""  # the last bytes that hold token counts
        self.trace: RequestTrace | None = None

    def begin_attempt(self, exchange: Exchange, engine: str, checkpoint: str) -> Attempt | None:
        """An engine is about to be asked; None if there is no trace."""
        self.model, self.route = exchange.request.model, exchange.route
        return None if self.trace is None else self.trace.begin_attempt(exchange, engine, checkpoint)

    @property
    def how_ended(self) -> str:
        """complete, broken or client_gone."""
        return "client_gone" if self.is_gone else "broken" if self.is_broken else "complete"


@dataclass(frozen=True)
class Watchers:
    """Who wants to know of each request."""

    tracing: Tracing | None
    access: AccessLog | None


class WatchedCall(Call):
    """A Call that fills its watch, and hands it over once it has ended."""

    watch: Watch

    def __init__(
        self, watchers: Watchers, protocol: ServingProtocol, handler: Handler, headers: list[tuple[bytes, bytes]]
    ) -> None:
        super().__init__(protocol, handler, headers)
        self.watch = Watch(protocol.url.partition(b"?")[0].decode("latin-1"))
        self._watchers = watchers
        self._is_running = self._has_ended = False

    def start(self, *args: Any, **kwargs: Any) -> None:
        self.watch.is_stream = True
        super().start(*args, **kwargs)

    def lose(self) -> None:
        if not self.response_complete:
            self.watch.is_gone = True
        super().lose()
        if not self._is_running:
            self._end()

    def _build_head(self, status: int, content_type: bytes, extra: bytes) -> bytes:
        self.watch.status = status
        return super()._build_head(status, content_type, extra)

    def _write(self, data: bytes) -> None:
        watch = self.watch
        if watch.first_ns is None and watch.is_stream:
            watch.first_ns = time.monotonic_ns() - watch.started
        if watch.wants_usage and b'"usage":{' in data:
            watch.usage = data
        if not self.disconnected:
            watch.num_bytes += len(data)
        super()._write(data)

    def _finish(self) -> None:
        self.watch.ended = time.monotonic_ns()
        super()._finish()
        if not self._is_running:
            self._end()

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        self._is_running = True
        self._begin_trace()
        try:
            await super()._run(work)
        finally:
            self._end()

    def _begin_trace(self) -> None:
        if self._watchers.tracing is not None:
            watch = self.watch
            watch.trace = self._watchers.tracing.begin(watch.path, self.headers, watch.started_at)
            watch.wants_usage = watch.trace.is_recording

    def _end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        watch = self.watch
        if not self.response_complete:
            watch.ended = time.monotonic_ns()
            watch.is_broken = not watch.is_gone
        if watch.trace is None:
            self._begin_trace()
        if watch.trace is not None:
            watch.trace.end(watch, self.request_id)
        if self._watchers.access is not None:
            self._watchers.access.add(describe_request(watch, self.request_id))


def describe_request(watch: Watch, request_id: str) -> AccessLine:
    """The line of a request that has ended; a client that left before its answer began gets 499."""
    identity, route, trace = watch.identity, watch.route, watch.trace
    return AccessLine(
        method="POST",
        path=watch.path,
        status=watch.status or CLIENT_GONE,
        ended=watch.how_ended,
        duration_ms=(watch.ended - watch.started) // 1000 / 1000,
        bytes=watch.num_bytes,
        request_id=request_id,
        trace_id="" if trace is None else trace.trace_id,
        app="" if identity is None else identity.app,
        key_id="" if identity is None else identity.key_id,
        arm="" if route is None else route.arm,
        paired=watch.is_paired,
        first_token_ms=None if watch.first_ns is None else watch.first_ns // 1000 / 1000,
    )


def check_tracing(section: GatewaySection) -> None:
    """Raises MissingExtra if traces are asked for and OpenTelemetry is not installed."""
    try:
        is_there = not section.otlp_endpoint or importlib.util.find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        raise MissingExtra("gateway.otlp_endpoint needs OpenTelemetry: install prefloop[otel].")


@contextlib.asynccontextmanager
async def open_watchers(section: GatewaySection, registry: CollectorRegistry) -> AsyncIterator[CallMaker]:
    """What the server makes its Calls by while the gateway runs: plain Calls if nobody watches."""
    tracing = access = None
    async with contextlib.AsyncExitStack() as stack:
        if section.otlp_endpoint:
            from gateway.telemetry.tracing import open_tracing  # a third of a second, which only traces are worth

            tracing = await asyncio.to_thread(open_tracing, section.otlp_endpoint, registry)
            stack.push_async_callback(asyncio.to_thread, tracing.close)
        if section.access_log:
            access = AccessLog(registry)
            access.start()
            stack.push_async_callback(asyncio.to_thread, access.close)
        yield Call if tracing is None and access is None else partial(WatchedCall, Watchers(tracing, access))

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
from gateway.http.call import Call, CallMaker, Channel, Handler
from gateway.http.record import RequestRecord
from gateway.serving.outcome import CLIENT_GONE
from gateway.telemetry.access import AccessLine, AccessLog

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from gateway.sections.serving import GatewaySection
    from gateway.telemetry.tracing import Tracing

_EXPORTER = "opentelemetry.exporter.otlp.proto.http"


@dataclass(frozen=True)
class Watchers:
    """Who wants to know of each request."""

    tracing: Tracing | None
    access: AccessLog | None


class WatchedCall(Call):
    """A Call that fills its record, and hands it over once it has ended."""

    record: RequestRecord

    def __init__(
        self, watchers: Watchers, protocol: Channel, handler: Handler, headers: list[tuple[bytes, bytes]]
    ) -> None:
        super().__init__(protocol, handler, headers)
        self.record = RequestRecord(protocol.url.partition(b"?")[0].decode("latin-1"))
        self._watchers = watchers
        self._is_running = self._has_ended = False

    def start(self, *args: Any, **kwargs: Any) -> None:
        self.record.is_stream = True
        super().start(*args, **kwargs)

    def lose(self) -> None:
        if not self.response_complete:
            self.record.is_gone = True
        super().lose()
        if not self._is_running:
            self._end()

    def _build_head(self, status: int, content_type: bytes, extra: bytes) -> bytes:
        self.record.status = status
        return super()._build_head(status, content_type, extra)

    def _write(self, data: bytes) -> None:
        record = self.record
        if record.first_ns is None and record.is_stream:
            record.first_ns = time.monotonic_ns() - record.started
        if record.wants_usage and b'"usage":{' in data:
            record.usage = data
        if not self.disconnected:
            record.num_bytes += len(data)
        super()._write(data)

    def _finish(self) -> None:
        self.record.ended = time.monotonic_ns()
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
            record = self.record
            trace = self._watchers.tracing.begin(record, self.headers)
            record.trace, record.wants_usage = trace, trace.is_recording

    def _end(self) -> None:
        if self._has_ended:
            return
        self._has_ended = True
        record = self.record
        if not self.response_complete:
            record.ended = time.monotonic_ns()
            record.is_broken = not record.is_gone
        if record.trace is None:
            self._begin_trace()
        if record.trace is not None:
            record.trace.finish(record, self.request_id)
        if self._watchers.access is not None:
            self._watchers.access.add(describe_request(record, self.request_id))


def describe_request(record: RequestRecord, request_id: str) -> AccessLine:
    """The line of a request that has ended; a client that left before its answer began gets 499."""
    return AccessLine(
        method="POST",
        path=record.path,
        status=record.status or CLIENT_GONE,
        ended=record.how_ended,
        duration_ms=(record.ended - record.started) // 1000 / 1000,
        bytes=record.num_bytes,
        request_id=request_id,
        trace_id="" if record.trace is None else record.trace.trace_id,
        app=record.app,
        key_id=record.key_id,
        arm=record.arm,
        paired=record.is_paired,
        first_token_ms=None if record.first_ns is None else record.first_ns // 1000 / 1000,
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

"""Traces for operators: a server span for each request on a path to an engine, a client span for each attempt at one.

Promises: nothing here waits; what the collector does not take is counted and logged once. A
span says who answered and how long it took, never what was asked or answered, nor for whom. The standard OTEL_
variables choose sampler, queue, resource and the collector's headers. Imported only when `gateway.otlp_endpoint` is set.
"""

from __future__ import annotations

import re
import sys
import threading
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.telemetry.span_exporter import CountedExporter, build_exporter

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import Tracer
    from opentelemetry.util.types import AttributeValue
    from prometheus_client import CollectorRegistry

    from gateway.http.record import AnswerView, AttemptRequest, RequestRecord

_OPERATIONS = {  # of the semantic conventions for generative AI
    "/v1/chat/completions": "chat",
    "/playground/chat": "chat",
    "/playground/beside": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}
_INPUT_TOKENS = re.compile(rb'"(?:prompt|input)_tokens":(\d+)')
_OUTPUT_TOKENS = re.compile(rb'"(?:completion|output)_tokens":(\d+)')
_FLUSH_S, _ABORT_S = 3.0, 1.0
_ROOT = Context()
_w3c = TraceContextTextMapPropagator()


class Tracing:
    """The provider of spans, and where they go. `close` when no request is left."""

    def __init__(self, exporter: SpanExporter, registry: CollectorRegistry) -> None:
        self._exporter = CountedExporter(exporter, registry)
        self._batches = BatchSpanProcessor(self._exporter)
        self._provider = TracerProvider(resource=describe_process(), shutdown_on_exit=False)
        self._provider.add_span_processor(self._batches)
        self._tracer = self._provider.get_tracer("prefloop.gateway")

    def begin(self, record: RequestRecord, headers: Mapping[bytes, bytes]) -> RequestTrace:
        """The trace of a request, below its client's span if its headers name one."""
        parent = _ROOT if b"traceparent" not in headers else read_parent(headers)
        name, attributes = _describe_path(record.path)
        span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=record.started_at)
        return RequestTrace(self._tracer, span)

    def close(self) -> None:
        """Send what waits, for a few seconds at most; blocks."""
        sending = threading.Thread(
            target=self._batches.shutdown, daemon=True
        )  # nobody waits for a collector that hangs
        sending.start()
        sending.join(_FLUSH_S)
        if sending.is_alive():
            self._exporter.shutdown()
            sending.join(_ABORT_S)


class RequestTrace:
    """The server span of one request, under which its attempts begin."""

    __slots__ = ("_context", "_span", "_tracer", "is_recording")

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer = tracer
        self._span = span
        self._context = set_span_in_context(span, _ROOT)
        self.is_recording = span.is_recording()

    @property
    def trace_id(self) -> str:
        """32 hex digits, as collectors show them; empty if the SDK is disabled."""
        trace_id = self._span.get_span_context().trace_id
        return f"{trace_id:032x}" if trace_id else ""

    def begin_attempt(self, asked: AttemptRequest) -> Attempt:
        """The client span of one request to one engine. An engine learns as well that a trace is not sampled."""
        if not self.is_recording:
            return Attempt(self._span, self._context)
        operation = _OPERATIONS.get(asked.path)
        attributes: dict[str, AttributeValue] = {
            **_describe_engine(asked.engine, asked.path),
            "prefloop.checkpoint": asked.checkpoint,
            "prefloop.arm": asked.arm,
        }
        if operation is not None:
            attributes |= {
                "gen_ai.operation.name": operation,
                "gen_ai.provider.name": "vllm",
                "gen_ai.request.model": asked.model,
                "gen_ai.request.stream": asked.is_stream,
            }
            if asked.token_limit is not None:
                attributes["gen_ai.request.max_tokens"] = asked.token_limit
            if isinstance(asked.temperature, int | float):
                attributes["gen_ai.request.temperature"] = asked.temperature
        name = "POST" if operation is None else f"{operation} {asked.alias}"
        span = self._tracer.start_span(name, self._context, SpanKind.CLIENT, attributes)
        return Attempt(span, set_span_in_context(span, _ROOT), asked.checkpoint)

    def finish(self, record: RequestRecord, request_id: str) -> None:
        """The request is over."""
        span = self._span
        if not self.is_recording:
            return
        attributes: dict[str, AttributeValue] = {"prefloop.request_id": request_id, "prefloop.paired": record.is_paired}
        if record.status:
            attributes["http.response.status_code"] = record.status
        if record.app:
            attributes["prefloop.app"] = record.app
        if record.checkpoint:
            attributes["gen_ai.request.model"] = record.model
            if not record.is_paired:
                attributes["prefloop.checkpoint"] = record.checkpoint
                attributes["prefloop.arm"] = record.arm
        if record.comparison:
            attributes["prefloop.comparison"] = record.comparison
        attributes |= _read_usage(record.usage)
        if record.first_ns is not None:
            span.add_event("first_token", timestamp=record.started_at + record.first_ns)
        if record.how_ended != "complete":
            attributes["error.type"] = record.how_ended
        elif record.status >= 500:
            attributes["error.type"] = str(record.status)
        span.set_attributes(attributes)
        if record.is_broken or record.status >= 500:
            span.set_status(StatusCode.ERROR)
        span.end(record.started_at + record.ended - record.started)


class Attempt:
    """One request to one engine: the header lines it carries, and its span if it has one of its own."""

    __slots__ = ("_begun", "_checkpoint", "_span", "headers")

    def __init__(self, span: Span, context: Context, checkpoint: str | None = None) -> None:
        carrier: dict[str, str] = {}
        _w3c.inject(carrier, context)
        self.headers = "".join(f"{name}: {value}\r\n" for name, value in carrier.items()).encode("latin-1")
        self._span = span
        self._checkpoint = checkpoint  # None: the span is the request's, and records nothing
        self._begun = time.monotonic()

    def follow(self, answer: AnswerView) -> None:
        """The first bytes of a stream are there; the attempt ends when the stream is closed."""
        if self._checkpoint is None:
            return
        self._span.add_event("first_token")
        self._span.set_attribute("gen_ai.response.time_to_first_chunk", time.monotonic() - self._begun)
        done = answer.on_close

        def close() -> None:
            if done is not None:
                done()
            self.end(answer)

        answer.on_close = close

    def end(self, answer: AnswerView | None) -> None:
        """The attempt is over. Without an answer the exception that is on its way says why."""
        span = self._span
        if self._checkpoint is None:
            return
        error = sys.exception() if answer is None else answer.error
        attributes: dict[str, Any] = {}
        if answer is not None and answer.status:
            attributes["http.response.status_code"] = answer.status
            attributes["gen_ai.response.model"] = self._checkpoint
            if answer.is_complete:
                attributes |= _read_usage(answer.body)
        if error is not None:
            attributes["error.type"] = type(error).__name__
        elif answer is not None and answer.status >= 400:
            attributes["error.type"] = str(answer.status)
        elif answer is not None and not answer.is_complete:
            attributes["error.type"] = "client_gone"
        span.set_attributes(attributes)
        if isinstance(error, Exception) or (answer is not None and answer.status >= 400):
            span.set_status(StatusCode.ERROR)
        span.end()


def open_tracing(endpoint: str, registry: CollectorRegistry) -> Tracing:
    """Tracing to the collector at `endpoint`."""
    return Tracing(build_exporter(endpoint), registry)


def describe_process() -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say, else a name of ours."""
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        return resource.merge(Resource({SERVICE_NAME: "prefloop-gateway"}))
    return resource


def read_parent(headers: Mapping[bytes, bytes]) -> Context:
    """The client's span, if its traceparent is well-formed."""
    names = ("traceparent", "tracestate")
    return _w3c.extract(
        {name: headers[name.encode()].decode("latin-1") for name in names if name.encode() in headers}, _ROOT
    )


@lru_cache(maxsize=64)
def _describe_path(path: str) -> tuple[str, dict[str, AttributeValue]]:
    attributes: dict[str, AttributeValue] = {
        "http.request.method": "POST",
        "http.route": path,
        "url.path": path,
        "url.scheme": "http",
    }
    if path in _OPERATIONS:
        attributes["gen_ai.operation.name"] = _OPERATIONS[path]
    return f"POST {path}", attributes


@lru_cache(maxsize=1024)
def _describe_engine(url: str, path: str) -> dict[str, AttributeValue]:
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    full = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}{path}"
    return {"http.request.method": "POST", "server.address": host, "server.port": port, "url.full": full}


def _read_usage(data: bytes) -> dict[str, AttributeValue]:
    """The token counts in the last `usage` of some JSON; inside a string its quotes would be escaped."""
    start = data.rfind(b'"usage":{')
    if start < 0:
        return {}
    found = {
        "gen_ai.usage.input_tokens": _INPUT_TOKENS.search(data, start),
        "gen_ai.usage.output_tokens": _OUTPUT_TOKENS.search(data, start),
    }
    return {name: int(match[1]) for name, match in found.items() if match}

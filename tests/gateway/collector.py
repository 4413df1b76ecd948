"""A tiny OTLP/HTTP collector: keeps the spans it is sent, or fails as a test asks for."""

import contextlib
import gzip
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

KINDS = {Span.SPAN_KIND_SERVER: "server", Span.SPAN_KIND_CLIENT: "client"}


@dataclass(frozen=True)
class SeenSpan:
    """One span as it came over the wire; ids in hex, times in ns since 1970."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start: int
    end: int
    has_failed: bool
    attributes: dict[str, Any]
    events: dict[str, int]
    resource: dict[str, Any]


@dataclass
class Collector:
    """What came, and what the next requests are answered."""

    url: str = ""
    status: int = 200
    spans: list[SeenSpan] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)  # while it is clear, nobody gets an answer

    def of_kind(self, kind: str) -> list[SeenSpan]:
        """The server's or the client's spans, in the order of their start."""
        return sorted((span for span in self.spans if span.kind == kind), key=lambda span: span.start)

    def take(self, body: bytes) -> int:
        self.bodies.append(body)
        if self.status == 200:
            request = ExportTraceServiceRequest.FromString(body)
            for part in request.resource_spans:
                resource = _read_attributes(part.resource.attributes)
                self.spans += [_read_span(span, resource) for scope in part.scope_spans for span in scope.spans]
        return self.status


@contextlib.contextmanager
def run_collector() -> Iterator[Collector]:
    """A collector on a free port until the block ends."""
    collector = Collector()
    collector.is_open.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            collector.is_open.wait(30)
            body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
            self.send_response(collector.take(body) if self.path == "/v1/traces" else 404)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    collector.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.is_open.set()
        server.shutdown()
        server.server_close()


def _read_span(span: Span, resource: dict[str, Any]) -> SeenSpan:
    return SeenSpan(
        name=span.name,
        kind=KINDS.get(span.kind, "internal"),
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        has_failed=span.status.code == 2,
        attributes=_read_attributes(span.attributes),
        events={event.name: event.time_unix_nano for event in span.events},
        resource=resource,
    )


def _read_attributes(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}

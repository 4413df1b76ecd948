"""Where spans wait for the collector: the SDK's batches, with what they lose counted and logged once.

Bounded: a span that finds the queue full is dropped at once. A failing collector is logged when it begins to fail,
and again only after it has worked in between.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, Counter

_CAPACITY = 2048  # the SDK's own default
_FLUSH_S, _ABORT_S = 3.0, 1.0
_TRACES_PATH = "/v1/traces"


class SpanQueue(BatchSpanProcessor):
    """The SDK's queue and thread in front of an exporter. OTEL_BSP_MAX_QUEUE_SIZE is its capacity."""

    def __init__(self, exporter: SpanExporter, registry: CollectorRegistry) -> None:
        spans = Counter("prefloop_spans", "Spans by what became of them.", ["outcome"], registry=registry)
        self._capacity = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", _CAPACITY))
        self._exporter = _CountedExporter(exporter, spans)
        self._num_put = 0  # by the event loop's thread alone
        self._dropped = spans.labels("dropped")
        super().__init__(self._exporter, max_queue_size=self._capacity)

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span; never blocks."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._num_put - self._exporter.num_taken >= self._capacity:
            self._dropped.inc()
            return
        self._num_put += 1
        super().on_end(span)

    def close(self) -> None:
        """Send what waits, for at most some seconds; blocks."""
        sending = threading.Thread(target=self.shutdown, daemon=True)  # nobody waits for a collector that hangs
        sending.start()
        sending.join(_FLUSH_S)
        if sending.is_alive():
            self._exporter.shutdown()
            sending.join(_ABORT_S)


class _CountedExporter(SpanExporter):
    """Counts what another exporter does, in the queue's thread."""

    def __init__(self, inner: SpanExporter, spans: Counter) -> None:
        self.num_taken = 0
        self._inner = inner
        self._exported, self._failed = spans.labels("exported"), spans.labels("failed")
        self._once = _Once()
        self._logger = logging.getLogger(type(inner).__module__)
        self._logger.addFilter(self._once)
        self._is_shut = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.num_taken += len(spans)
        try:
            result = self._inner.export(spans)
        except Exception:
            self._logger.exception("spans could not be exported")
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._once.has_spoken = False
            self._exported.inc(len(spans))
        else:
            self._failed.inc(len(spans))
        return result

    def shutdown(self) -> None:
        if not self._is_shut:
            self._is_shut = True
            self._inner.shutdown()
            self._logger.removeFilter(self._once)


class _Once(logging.Filter):
    """Lets one line of a logger pass, until `has_spoken` is taken back."""

    def __init__(self) -> None:
        super().__init__()
        self.has_spoken = False

    def filter(self, record: logging.LogRecord) -> bool:
        has_spoken, self.has_spoken = self.has_spoken, True
        return not has_spoken


def build_exporter(endpoint: str) -> SpanExporter:
    """The OTLP/HTTP exporter to a collector's base URL, or to its whole URL if that ends in /v1/traces."""
    url = endpoint.rstrip("/")
    if urlsplit(url).path.endswith(_TRACES_PATH):
        return OTLPSpanExporter(endpoint=url)
    return OTLPSpanExporter(endpoint=url + _TRACES_PATH)

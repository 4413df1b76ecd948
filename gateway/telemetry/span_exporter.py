"""Sends spans to the collector by the SDK's batches, and counts what became of them.

A failing collector is logged when it begins to fail, and again only after it has worked in between. A full queue drops
its oldest span, which the SDK logs.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from prometheus_client import CollectorRegistry, Counter

_TRACES_PATH = "/v1/traces"


class CountedExporter(SpanExporter):
    """Counts what another exporter does, in the thread of the SDK's batches."""

    def __init__(self, inner: SpanExporter, registry: CollectorRegistry) -> None:
        spans = Counter("prefloop_spans", "Spans by what became of them.", ["outcome"], registry=registry)
        self._inner = inner
        self._exported, self._failed = spans.labels("exported"), spans.labels("failed")
        self._logger = logging.getLogger(type(inner).__module__)
        self._logger.addFilter(self._is_first)
        self._has_spoken = False
        self._closing = threading.Lock()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._inner.export(spans)
        except Exception:
            self._logger.exception("spans could not be exported")
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._has_spoken = False
            self._exported.inc(len(spans))
        else:
            self._failed.inc(len(spans))
        return result

    def shutdown(self) -> None:
        if self._closing.acquire(blocking=False):  # once: the SDK comes here too
            self._inner.shutdown()
            self._logger.removeFilter(self._is_first)

    def _is_first(self, record: logging.LogRecord) -> bool:
        has_spoken, self._has_spoken = self._has_spoken, True
        return not has_spoken


def build_exporter(endpoint: str) -> SpanExporter:
    """The OTLP/HTTP exporter to a collector's base URL, or to its whole URL if that ends in /v1/traces."""
    url = endpoint.rstrip("/")
    if urlsplit(url).path.endswith(_TRACES_PATH):
        return OTLPSpanExporter(endpoint=url)
    return OTLPSpanExporter(endpoint=url + _TRACES_PATH)

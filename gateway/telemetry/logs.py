"""How the gateway's log lines look: text for people, or one JSON object a line for machines.

A line about a request carries the id that the client got back, and the trace's id where there is a trace: from
`extra`, or on ASGI's routes from `current_request_id`. Does not decide what is logged; nothing that is secret may be.
"""

from __future__ import annotations

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TextIO

from gateway.sections.serving import LogFormat

# Set on ASGI's routes alone: a pooled connection to an engine keeps the context in which it was opened.
current_request_id: ContextVar[str] = ContextVar("current_request_id", default="")

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


def set_up_logging(log_format: LogFormat, stream: TextIO | None = None) -> logging.Handler:
    """Write every logger's lines from INFO on to `stream`, stderr by default; what had been set up before goes."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    return handler


def read_fields(record: logging.LogRecord) -> dict[str, Any]:
    """What a record carries beside its message: `request_id`, `trace_id`, and what is in its `fields`."""
    fields: dict[str, Any] = {}
    if request_id := getattr(record, "request_id", "") or current_request_id.get():
        fields["request_id"] = request_id
    if trace_id := getattr(record, "trace_id", ""):
        fields["trace_id"] = trace_id
    fields.update(getattr(record, "fields", ()))
    return fields


class TextFormatter(logging.Formatter):
    """Time, level, logger and message, then the fields as name=value."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line without its traceback."""
        return " ".join([super().formatMessage(record), *(f"{k}={v}" for k, v in read_fields(record).items())])


class JsonFormatter(logging.Formatter):
    """One object a line: time (ISO 8601, UTC, milliseconds), level, logger, message, the fields, `error` with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """The object; never a line break in it."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **read_fields(record),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return _encode(line)

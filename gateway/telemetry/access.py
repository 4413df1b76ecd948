"""The access log: one line for each finished request on a path to an engine, written by a thread of its own.

Promises: who adds a line never waits; what finds the queue full is dropped and counted. A line says who asked (app and
key id), how it ended and how long it took; never what was asked or answered, nor for whom.
"""

from __future__ import annotations

import logging
import logging.handlers
import queue
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter

_MAX_WAITING = 10_000


class AccessLine(msgspec.Struct, omit_defaults=True):
    """One request. `status` is what was sent; `ended` says how the answer ended: complete, broken or client_gone.

    `arm` is what the request was assigned to, `bytes` all that was written, head included.
    """

    method: str
    path: str
    status: int
    ended: str
    duration_ms: float
    bytes: int
    request_id: str
    trace_id: str = ""
    app: str = ""
    key_id: str = ""
    arm: str = ""
    paired: bool = False
    first_token_ms: float | None = None  # streams only


class AccessLog:
    """The queue and its thread, from `start` to `close`. Lines go to the root logger's handlers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._listener = _Listener(self._queue)
        self._dropped = Counter("prefloop_access_lines_dropped", "Lines the access log lost.", registry=registry)

    def start(self) -> None:
        """Begin to write."""
        self._listener.start()

    def add(self, line: AccessLine) -> None:
        """Write a line soon; never blocks."""
        if self._queue.qsize() < _MAX_WAITING:
            self._queue.put_nowait(line)
        else:
            self._dropped.inc()

    def close(self) -> None:
        """Write what waits; blocks."""
        self._listener.stop()


class _Listener(logging.handlers.QueueListener):
    """Makes records of lines in its own thread: a LogRecord costs more than all else that a line costs."""

    def handle(self, line: AccessLine) -> None:  # type: ignore[override]
        record = logging.LogRecord("gateway.access", logging.INFO, __file__, 0, "request", None, None)
        record.fields = msgspec.to_builtins(line)
        logging.getLogger().handle(record)

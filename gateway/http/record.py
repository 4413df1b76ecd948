"""What is noted of one request for traces and the access log, in plain fields: whoever answers it fills them in.

A request that nobody watches has no record. Holds no prompt, no answer and no user.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import msgspec


class AttemptRequest(msgspec.Struct, frozen=True):
    """What is asked of an engine in one attempt: `alias` is what the client calls the model, `arm` who answers."""

    path: str
    engine: str
    checkpoint: str
    arm: str
    alias: str
    model: str
    is_stream: bool
    token_limit: int | None
    temperature: object


class AnswerView(Protocol):
    """What an attempt's span reads of an engine's answer."""

    status: int
    is_complete: bool
    error: Exception | None
    on_close: Callable[[], None] | None

    @property
    def body(self) -> bytes:
        """All of it, once it is complete."""


class Attempt(Protocol):
    """One attempt at an engine, being traced: `headers` are lines that it carries."""

    headers: bytes

    def follow(self, answer: AnswerView) -> None:
        """The first bytes of a stream are there; the attempt ends when the stream is closed."""

    def end(self, answer: AnswerView | None) -> None:
        """The attempt is over. Without an answer the exception that is on its way says why."""


class Trace(Protocol):
    """The trace of a request."""

    @property
    def trace_id(self) -> str:
        """32 hex digits, or empty."""

    def begin_attempt(self, asked: AttemptRequest) -> Attempt:
        """An engine is about to be asked."""

    def finish(self, record: RequestRecord, request_id: str) -> None:
        """The request is over."""


class RequestRecord:
    """One request. Times in ns: `started_at` since 1970, `started` and `ended` on the monotonic clock."""

    __slots__ = (
        "app", "arm", "checkpoint", "comparison", "ended", "first_ns", "is_broken", "is_gone", "is_paired",
        "is_stream", "key_id", "model", "num_bytes", "path", "started", "started_at", "status", "trace", "usage",
        "wants_usage",
    )  # fmt: skip

    def __init__(self, path: str) -> None:
        self.path = path
        self.started_at = time.time_ns()
        self.started = self.ended = time.monotonic_ns()
        self.first_ns: int | None = None  # of a stream, from its start
        self.status = 0  # what was sent
        self.num_bytes = 0
        self.is_stream = self.is_paired = self.is_gone = self.is_broken = self.wants_usage = False
        self.app = self.key_id = self.model = self.arm = self.checkpoint = self.comparison = ""
        self.usage = b""  # the last bytes that hold token counts
        self.trace: Trace | None = None

    @property
    def how_ended(self) -> str:
        """complete, broken or client_gone."""
        return "client_gone" if self.is_gone else "broken" if self.is_broken else "complete"

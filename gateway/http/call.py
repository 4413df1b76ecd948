"""One request on a path that reaches an engine, and the way to answer it.

Its body is read whole, its handler runs in the read that completes it, and its answer goes to the connection without
ASGI: one write for a whole answer, one for each piece of a stream. A client that leaves cancels what answers.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from gateway.errors import ApiError, error_body
from gateway.http.eager import Eager
from gateway.http.record import RequestRecord

logger = logging.getLogger("gateway.call")

Handler = Callable[["Call"], Coroutine[Any, Any, None] | None]
"""Answers a call by the coroutine that it returns; None: it has answered, or what it set as `call.running` will."""
CallMaker = Callable[["Channel", Handler, list[tuple[bytes, bytes]]], "Call"]
JSON = b"application/json"
EVENTS = b"text/event-stream"

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REQUEST_ID_SUFFIX = secrets.token_hex(4)


def make_request_id() -> str:
    """A new id, in the order of time, that nobody can guess."""
    return f"req_{time.time_ns():016x}{_REQUEST_ID_SUFFIX}"


def read_request_id(given: bytes | None) -> str:
    """The client's own id; empty without a harmless one."""
    return given.decode() if given and _REQUEST_ID.fullmatch(given) else ""


class _NoEvent:
    """uvicorn wakes its cycles by an event; a Call needs none."""

    def set(self) -> None:
        """Nothing waits."""


class Channel(Protocol):
    """What a call needs of the connection that it came by."""

    transport: Any
    flow: Any
    loop: asyncio.AbstractEventLoop
    url: bytes
    client: tuple[str, int] | None  # the address at the other end

    @property
    def max_body_bytes(self) -> int:
        """Of a request."""

    @property
    def default_lines(self) -> bytes:
        """The header lines of every answer."""

    def note_task(self, task: asyncio.Task[None]) -> None:
        """A call has become a task."""

    def on_response_complete(self) -> None:
        """A call is answered."""

    def close_soon(self) -> None:
        """Close once the client has read what was written."""


class Running(Protocol):
    """What answers a call."""

    def cancel(self) -> None:
        """The client has gone. Harmless once the call is answered."""


class Call:
    """One request on a path of ours, and the way to answer it.

    Stands where uvicorn keeps its cycle, and has the attributes that uvicorn reads there.
    """

    message_event = _NoEvent()
    record: RequestRecord | None = None  # for traces and the access log, if anybody wants it
    is_booked = False  # an answer to it has been counted
    is_http_11 = True
    keep_alive = True
    disconnected = False
    response_started = False
    response_complete = False
    more_body = True
    waiting_for_100_continue = False
    is_current = False
    extra = b""  # header lines of every answer to this request
    on_pause: Callable[[], None] | None = None  # the client reads slowly
    on_resume: Callable[[], None] | None = None
    running: Running | None = None
    _body: bytes | bytearray = b""
    _is_too_large = False
    _has_begun = False
    _head = b""  # of a stream, until its first bytes go out with it
    _own_id: str | None = None

    def __init__(self, protocol: Channel, handler: Handler, headers: list[tuple[bytes, bytes]]) -> None:
        self.headers = dict(headers)
        self._protocol = protocol
        self._handler = handler

    # The request

    @property
    def body(self) -> bytes:
        """The whole body. Raises ApiError 413."""
        if self._is_too_large:
            limit = self._protocol.max_body_bytes
            raise ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
        body = self._body
        return body if type(body) is bytes else bytes(body)

    def header(self, name: bytes) -> str | None:
        """A header by its lower-case name."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def peer(self) -> str | None:
        """The address at the other end of the connection."""
        client = self._protocol.client
        return None if client is None else client[0]

    @property
    def own_id(self) -> str:
        """Our own id of the request, which the engine makes the completion's id of."""
        own_id = self._own_id
        if own_id is None:
            own_id = self._own_id = make_request_id()
        return own_id

    @property
    def request_id(self) -> str:
        """The id that the client sees: the one it gave, else our own."""
        given = self.headers.get(b"x-request-id")
        return self.own_id if given is None else read_request_id(given) or self.own_id

    @property
    def log_fields(self) -> dict[str, str]:
        """What a log line about the request carries, as its `extra`."""
        fields = {"request_id": self.request_id}
        if self.record is not None and self.record.trace is not None:
            fields["trace_id"] = self.record.trace.trace_id
        return fields

    # The answer

    def send(self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b"") -> None:
        """The whole answer in one write. `extra`: whole header lines."""
        head = self._build_head(status, content_type, extra)
        self._write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self._finish()

    def refuse(self, error: ApiError) -> None:
        """An error in OpenAI's shape."""
        extra = b"".join(b"%b: %b\r\n" % (k.encode(), v.encode("latin-1")) for k, v in error.headers.items())
        if error.status == 429:
            self.extra = b""  # the error says it itself
        self.send(error.status, error.body(), JSON, extra)

    def start(self, content_type: bytes = EVENTS, extra: bytes = b"") -> None:
        """Begin a stream; its head goes out with its first bytes."""
        if not self.is_http_11:
            self.keep_alive = False  # the end of the connection is the end of the body
        head = self._build_head(200, content_type, b"cache-control: no-cache\r\nx-accel-buffering: no\r\n" + extra)
        self._head = head + (b"transfer-encoding: chunked\r\n\r\n" if self.is_http_11 else b"\r\n")

    def write(self, data: bytes) -> None:
        """More of the stream. `data` is not empty."""
        if self.is_http_11:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not self._head:
            self._write(data)
            return
        head, self._head = self._head, b""
        self._write(head + data)
        if self.on_pause is not None and self._protocol.flow.write_paused:
            self.on_pause()  # nobody says so if the answer before this one is what the client does not read

    def end(self) -> None:
        """The stream is complete."""
        head, self._head = self._head, b""
        self._write(head + b"0\r\n\r\n" if self.is_http_11 else head)
        self._finish()

    async def drain(self) -> None:
        """Wait until the client has read enough of what was written."""
        if self._protocol.flow.write_paused and not self.disconnected:
            await self._protocol.flow.drain()

    def _build_head(self, status: int, content_type: bytes, extra: bytes) -> bytes:
        self.response_started = True
        return b"%b%b%bcontent-type: %b\r\nx-request-id: %b\r\n%b%b" % (
            STATUS_LINE[status],
            self._protocol.default_lines,
            b"" if self.keep_alive and not self.more_body else b"connection: close\r\n",
            content_type,
            self.request_id.encode(),
            self.extra,
            extra,
        )

    def _write(self, data: bytes) -> None:
        if not self.disconnected:
            self._protocol.transport.write(data)

    def _finish(self) -> None:
        self.response_complete = True
        protocol = self._protocol
        if self.more_body:  # what is left of a body would be read as the next request
            protocol.close_soon()
        elif not self.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()

    # What the protocol tells it

    def feed(self, data: bytes) -> None:
        if self._is_too_large:
            return
        if not self._body:
            self._body = data  # most bodies come in one piece
        elif isinstance(self._body, bytearray):
            self._body += data
        else:
            self._body = bytearray(self._body) + data  # a list of a million tiny chunks would take forty times as much
        if len(self._body) > self._protocol.max_body_bytes:
            self._is_too_large = True
            self._body = b""
            self.begin()

    def begin(self) -> None:
        """Run the handler, if it is this call's turn and its body is there."""
        if not self.is_current or (self.more_body and not self._is_too_large):
            return
        if not self._has_begun and not self.response_complete:
            self._has_begun = True
            try:
                work = self._handler(self)
            except Exception as error:
                self.fail(error)
            else:
                if work is not None:
                    self.run(work)

    def lose(self) -> None:
        """The client has gone."""
        self.disconnected = True
        if self.running is not None:
            self.running.cancel()

    # Who answers

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Have a coroutine answer; it begins at once."""
        self.running = Eager(self._run(work), self._protocol.loop, self._protocol.note_task)

    def fail(self, error: Exception) -> None:
        """Answer with an error: an ApiError as it is, any other as one of ours, which is logged."""
        if isinstance(error, ApiError):
            self.refuse(error)
            return
        logger.error("a request failed", exc_info=error, extra=self.log_fields)
        if self.response_complete:  # while it was booked
            return
        if self.response_started:
            self._protocol.transport.abort()
        else:
            self.send(500, error_body(500, "Internal error."))

    async def _run(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
            assert self.response_complete or self.disconnected, "a handler must answer"
        except asyncio.CancelledError:
            if not self.disconnected:
                raise
        except Exception as error:
            self.fail(error)

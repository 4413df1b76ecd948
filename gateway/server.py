"""The HTTP server: uvicorn's protocol, with the paths that reach an engine taken out of ASGI.

A request on one of those paths becomes a Call: its body is read whole, its handler runs as one task, and its answer is
written straight to the transport. Everything else goes to FastAPI as uvicorn does it. Pipelined requests are answered
in order, a client that leaves cancels its handler, and a client that reads slowly holds back the engine's stream.
Written against uvicorn's HttpToolsProtocol, whose version is pinned.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import httptools
import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import ApiError, bad_request, error_body

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

    from gateway.watched import Watch

logger = logging.getLogger("gateway.server")

Handler = Callable[["Call"], Coroutine[Any, Any, None]]
CallMaker = Callable[["ServingProtocol", Handler, list[tuple[bytes, bytes]]], "Call"]
JSON = b"application/json"
EVENTS = b"text/event-stream"

_MAX_PIPELINED = 32
_MAX_HEAD_BYTES = 65_536  # counted by reads, so up to one read more
_LINGER_S = 2.0
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_REQUEST_ID_SUFFIX = secrets.token_hex(4)


class Serving(Protocol):
    """What the protocol needs of the app: the handlers by path, and the limits of a request."""

    handlers: Mapping[bytes, Handler]
    make_call: CallMaker
    max_body_bytes: int
    body_timeout_s: float


def make_request_id() -> str:
    """A new id, in the order of time, that nobody can guess."""
    return f"req_{time.time_ns():016x}{_REQUEST_ID_SUFFIX}"


def pick_request_id(given: bytes | None) -> str:
    """The client's own id if it is harmless, else a new one."""
    return given.decode() if given and _REQUEST_ID.fullmatch(given) else make_request_id()


class _NoTrailers(list[tuple[bytes, bytes]]):
    """Where the parser puts headers once a request has begun: what comes after a body is nobody's."""

    def append(self, header: tuple[bytes, bytes]) -> None:
        """Forget it."""


_NO_TRAILERS = _NoTrailers()


class _NoEvent:
    """uvicorn wakes its cycles by an event; a Call needs none."""

    def set(self) -> None:
        """Nothing waits."""


class Call:
    """One request on a path of ours, and the way to answer it.

    Stands where uvicorn keeps its cycle, and has the attributes that uvicorn reads there.
    """

    message_event = _NoEvent()
    watch: Watch | None = None  # what is noted for traces and the access log, if anybody wants it

    def __init__(self, protocol: ServingProtocol, handler: Handler, headers: list[tuple[bytes, bytes]]) -> None:
        self.headers = dict(headers)
        self.is_http_11 = True
        self.keep_alive = True
        self.disconnected = False
        self.response_complete = False
        self.more_body = True
        self.waiting_for_100_continue = False
        self.is_current = False
        self.response_started = False
        self.extra = b""  # header lines of every answer to this request
        self.on_pause: Callable[[], None] | None = None  # the client reads slowly
        self.on_resume: Callable[[], None] | None = None
        self._protocol = protocol
        self._handler = handler
        self._pieces: list[bytes] = []
        self._num_bytes = 0
        self._is_too_large = False
        self._task: asyncio.Task[None] | None = None
        self._head = b""  # of a stream, until its first bytes go out with it
        self._own_id: str | None = None
        self._request_id: str | None = None

    # The request

    @property
    def body(self) -> bytes:
        """The whole body."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)

    def header(self, name: bytes) -> str | None:
        """A header by its lower-case name."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    @property
    def own_id(self) -> str:
        """Our own id of the request, which the engine makes the completion's id of."""
        if self._own_id is None:
            self._own_id = make_request_id()
        return self._own_id

    @property
    def request_id(self) -> str:
        """The id that the client sees: the one it gave, else our own."""
        if self._request_id is None:
            given = self.headers.get(b"x-request-id")
            self._request_id = self.own_id if given is None else pick_request_id(given)
        return self._request_id

    @property
    def log_fields(self) -> dict[str, str]:
        """What a log line about the request carries, as its `extra`."""
        fields = {"request_id": self.request_id}
        if self.watch is not None and self.watch.trace is not None:
            fields["trace_id"] = self.watch.trace.trace_id
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
        head, self._head = self._head, b""
        self._write(b"%b%x\r\n%b\r\n" % (head, len(data), data) if self.is_http_11 else head + data)

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
        lines = [STATUS_LINE[status]]
        for name, value in self._protocol.server_state.default_headers:
            lines += (name, b": ", value, b"\r\n")
        if not self.keep_alive or self.more_body:
            lines.append(b"connection: close\r\n")
        lines.append(
            b"content-type: %b\r\nx-request-id: %b\r\n%b%b"
            % (content_type, self.request_id.encode("latin-1"), self.extra, extra)
        )
        return b"".join(lines)

    def _write(self, data: bytes) -> None:
        if not self.disconnected:
            self._protocol.transport.write(data)

    def _finish(self) -> None:
        self.response_complete = True
        if self.more_body:  # what is left of a body would be read as the next request
            self._protocol.close_soon()
        elif not self.keep_alive:
            self._protocol.transport.close()
        self._protocol.on_response_complete()

    # What the protocol tells it

    def feed(self, data: bytes) -> None:
        self._num_bytes += len(data)
        if self._num_bytes <= self._protocol.serving.max_body_bytes:
            self._pieces.append(data)
        elif not self._is_too_large:
            self._is_too_large = True
            self._pieces.clear()
            self.begin()

    def begin(self) -> None:
        """Run the handler, if it is this call's turn and its body is there."""
        if not self.is_current or self._task is not None or self.response_complete:
            return
        if self._is_too_large or not self.more_body:
            self._task = self._protocol.loop.create_task(self._run())
            self._protocol.tasks.add(self._task)
            self._task.add_done_callback(self._protocol.tasks.discard)

    def lose(self) -> None:
        """The client has gone."""
        self.disconnected = True
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            if self._is_too_large:
                limit = self._protocol.serving.max_body_bytes
                raise ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")
            await self._handler(self)
            assert self.response_complete or self.disconnected, "a handler must answer"
        except ApiError as error:
            self.refuse(error)
        except asyncio.CancelledError:
            if not self.disconnected:
                raise
        except Exception:
            logger.exception("a request failed", extra=self.log_fields)
            if self.response_started:
                self._protocol.transport.abort()
            else:
                self.send(500, error_body(500, "Internal error."))


class ServingProtocol(HttpToolsProtocol):
    """One client connection. `config.app` is the gateway, which is `Serving`."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, server_state, app_state, _loop)
        self.serving: Serving = config.app  # type: ignore[assignment]
        self._newest: Call | None = None  # the request that is being read, if it is ours
        self._current: Call | None = None  # the one whose turn it is
        self._is_in_head = self._is_in_request = False  # what the parser waits for more of
        self._num_head_bytes = 0
        self._is_deaf = False  # what still comes is not read as HTTP
        self._request_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Nor may a connection be silent before its first request for longer than in one.
        self.timeout_keep_alive_task = self.loop.call_later(
            self.serving.body_timeout_s, self.timeout_keep_alive_handler
        )

    # The scope of ASGI is made only for what goes there.

    def on_message_begin(self) -> None:
        self._is_in_head = self._is_in_request = True
        if self._request_timer is not None:
            self._stop_request_timer()
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the parser stops here: _go_on_in_http
        handler = self.serving.handlers.get(self.url)
        if handler is None and (b"?" in self.url or not self.url.startswith(b"/")):
            handler = self.serving.handlers.get(httptools.parse_url(self.url).path)
        if handler is None or self.parser.get_method() != b"POST":
            url, headers, expects = self.url, self.headers, self.expect_100_continue
            super().on_message_begin()
            self.url, self.expect_100_continue = url, expects
            self.headers.extend(headers)
            self._newest = None
            super().on_headers_complete()
            self.headers = _NO_TRAILERS
            self._is_in_head = False
            return
        before = self.cycle
        call = self.serving.make_call(self, handler, self.headers)
        self.headers = _NO_TRAILERS
        self._is_in_head = False
        call.is_http_11 = self.parser.get_http_version() != "1.0"
        call.keep_alive = call.is_http_11 and self.parser.should_keep_alive()
        self.cycle = self._newest = call  # type: ignore[assignment]
        call.waiting_for_100_continue = self.expect_100_continue
        if before is None or before.response_complete:
            self._begin(call)
        else:
            if len(self.pipeline) >= _MAX_PIPELINED:
                self.flow.pause_reading()  # who stops reading does not see that the client has left
            self.pipeline.appendleft((call, self.app))  # type: ignore[arg-type]

    def on_body(self, body: bytes) -> None:
        if self._newest is not None:
            self._newest.feed(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._is_in_request = False
        if self._newest is not None:
            self._newest.more_body = False
            self._newest.begin()
        else:
            super().on_message_complete()

    def data_received(self, data: bytes) -> None:
        if self._is_deaf:
            return
        was_in_head = self._is_in_head
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._stop_reading(bad_request("This is not HTTP."))
        except httptools.HttpParserUpgrade as error:
            self._go_on_in_http(data[error.args[0] :])
        if self._is_in_request:
            if was_in_head and self._is_in_head:
                self._num_head_bytes += len(data)
                if self._num_head_bytes > _MAX_HEAD_BYTES:
                    self._stop_reading(ApiError(431, f"The head is larger than {_MAX_HEAD_BYTES} bytes."))
            if self._request_timer is None and not self._is_deaf:
                self._num_head_bytes = 0
                self._request_timer = self.loop.call_later(self.serving.body_timeout_s, self._expire_request)
        elif self._request_timer is not None:
            self._stop_request_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_request_timer()
        self._unset_keepalive_if_required()
        self.pipeline.clear()  # what waits there has not begun
        if self._current is not None:
            self._current.lose()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._current is not None and self._current.on_pause is not None:
            self._current.on_pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._current is not None and self._current.on_resume is not None:
            self._current.on_resume()

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Call):
            self._begin(cycle)
        else:
            self._current = None
            super()._start_asgi_task(cycle, app)

    def _begin(self, call: Call) -> None:
        self._current = call
        call.is_current = True
        if call.waiting_for_100_continue and call.more_body:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        call.begin()

    # Requests that are not read to their end

    def _expire_request(self) -> None:
        self._request_timer = None
        self._stop_reading(ApiError(408, "The request did not come in time.", code="request_timeout"))

    def _stop_reading(self, error: ApiError) -> None:
        """Refuse what was being read if it is its turn, let the answers before it go out, close the connection."""
        self._is_deaf = True
        self._stop_request_timer()
        cycle = self.cycle  # of the request that is being read, or of the one before if this is still in its head
        if not self._is_in_request or self._is_in_head:
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False
                return
        elif self.pipeline or cycle.response_started or cycle.response_complete:
            self.transport.close()
            return
        elif isinstance(cycle, Call):
            cycle.refuse(error)
            cycle.lose()
            return
        else:
            cycle.disconnected = True
            cycle.message_event.set()
        self._refuse(error)
        self.close_soon()

    def _refuse(self, error: ApiError) -> None:
        body = error.body()
        head = (
            b"%bcontent-type: application/json\r\nx-request-id: %b\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        )
        self.transport.write(head % (STATUS_LINE[error.status], make_request_id().encode(), len(body)) + body)

    def _stop_request_timer(self) -> None:
        if self._request_timer is not None:
            self._request_timer.cancel()
            self._request_timer = None

    def close_soon(self) -> None:
        """Close when the client has, or in a moment: closed while it sends, it might never read the answer."""
        self._is_deaf = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def _go_on_in_http(self, rest: bytes) -> None:
        """Read a request that offers to speak something else (h2c, websocket) as if it did not.

        The parser takes the body for that other language, so a new one starts again without the offer.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            self._stop_reading(bad_request("This is no proxy."))
            return
        lines = [b"%b %b HTTP/%b\r\n" % (method, self.url, version)]
        lines += [b"%b: %b\r\n" % header for header in self.headers if header[0] not in (b"upgrade", b"connection")]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join([*lines, b"\r\n", rest]))


def build_server(app: Any, *, host: str, port: int, drain_timeout_s: float, is_quiet: bool = True) -> uvicorn.Server:
    """The server of a gateway; its owner runs it."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            loop="uvloop",
            http=ServingProtocol,
            log_config=None,  # its lines look like ours
            ws="none",
            log_level="warning" if is_quiet else "info",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=int(drain_timeout_s),
        )
    )

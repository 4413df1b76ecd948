"""One client connection: uvicorn's protocol, with the paths that reach an engine taken out of ASGI.

A request on one of those paths becomes a Call. Everything else goes to FastAPI as uvicorn does it. Pipelined requests
are answered in order, and a client that reads slowly holds back the engine's stream. Written against uvicorn's
HttpToolsProtocol, whose version is pinned.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gateway.errors import ApiError, bad_request
from gateway.http.call import Call, CallMaker, Handler, make_request_id
from gateway.http.outbox import Outbox, Outlet

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

_MAX_PIPELINED = 32
_MAX_HEAD_BYTES = 65_536  # counted by reads, so up to one read more
_MAX_TURN_BYTES = 65_536  # read in one turn of the loop, by one read more: uvloop reads on while there is more
_LINGER_S = 2.0
_NO_TRAILERS: deque[tuple[bytes, bytes]] = deque(maxlen=0)  # keeps nothing: what comes after a body is nobody's


class Serving(Protocol):
    """What the protocol needs of the app: the handlers by path, and the limits of a request.

    `find_handler`: for paths that name something; such a request is watched by nobody. `note_unread`: a request was
    refused with this status before it was read whole.
    """

    handlers: Mapping[bytes, Handler]
    note_unread: Callable[[int], None]
    find_handler: Callable[[bytes], Handler | None]
    make_call: CallMaker
    outbox: Outbox
    max_body_bytes: int
    body_timeout_s: float
    idle_timeout_s: float


class ServingProtocol(HttpToolsProtocol):
    """One client connection. `config.app` is the gateway, which is `Serving`."""

    _default_lines: ClassVar[tuple[list[tuple[bytes, bytes]], bytes]] = ([], b"")

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:  # fmt: skip
        super().__init__(config, server_state, app_state, _loop)
        self.serving: Serving = config.app  # type: ignore[assignment]
        self._newest: Call | None = None  # the request that is being read, if it is ours
        self._running: Any = None  # the one whose turn it is, ours or uvicorn's
        self._is_in_head = self._is_in_request = False  # what the parser waits for more of
        self._num_head_bytes = 0
        self._is_beginning = False
        self._silent_since = 0.0  # on the loop's clock, if nothing is being asked
        self._silence_limit_s = 0.0
        self._is_deaf = False  # what still comes is not read as HTTP
        self._request_timer: asyncio.TimerHandle | None = None
        self._stall_timer: asyncio.TimerHandle | None = None  # how long the client may take nothing of an answer

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = Outlet(transport, self.serving.outbox)  # type: ignore[assignment]
        # Nor may a connection be silent before its first request for longer than in one.
        self._silence_limit_s, self._silent_since = self.serving.body_timeout_s, self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(self._silence_limit_s, self._end_silence)

    # The scope of ASGI is made only for what goes there.

    def on_message_begin(self) -> None:
        self._is_in_head = self._is_in_request = True
        if self._request_timer is not None:
            self._stop_request_timer()
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))  # uvicorn looks at each, for those that go to ASGI

    def on_headers_complete(self) -> None:
        if self._is_deaf or self.parser.should_upgrade():
            return  # answered before its end, or the parser stops here: _go_on_in_http
        make_call = self.serving.make_call
        if (handler := self.serving.handlers.get(self.url)) is None:
            path = self._find_path()
            if (handler := self.serving.handlers.get(path)) is None:
                handler, make_call = self.serving.find_handler(path), Call
        if handler is None or self.parser.get_method() != b"POST":
            url, headers = self.url, self.headers
            super().on_message_begin()
            self.url = url
            for name, value in headers:
                super().on_header(name, value)
            if self.parser.get_http_version() == "1.0":
                self.expect_100_continue = False
            self._newest = None
            super().on_headers_complete()
            self.headers = _NO_TRAILERS  # type: ignore[assignment]
            self._is_in_head = False
            return
        before = self.cycle
        self.cycle = self._newest = call = make_call(self, handler, self.headers)  # type: ignore[assignment]
        self.headers = _NO_TRAILERS  # type: ignore[assignment]
        self._is_in_head = False
        if self.parser.get_http_version() == "1.0":
            call.is_http_11 = call.keep_alive = False
        elif not self.parser.should_keep_alive():
            call.keep_alive = False
        if b"expect" in call.headers and call.is_http_11:
            call.waiting_for_100_continue = call.headers[b"expect"].lower() == b"100-continue"
        if before is None or before.response_complete:
            self._begin(call)
        else:
            if len(self.pipeline) >= _MAX_PIPELINED:
                self.flow.pause_reading()  # who stops reading does not see that the client has left
            self.pipeline.appendleft((call, self.app))  # type: ignore[arg-type]

    def _find_path(self) -> bytes:
        """The path of a URL with a query, or of one that names the host as well."""
        if self.url.startswith(b"/"):
            return self.url.partition(b"?")[0]
        try:
            return httptools.parse_url(self.url).path or b""
        except httptools.HttpParserInvalidURLError:
            return b""

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
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._stop_reading(bad_request("This is not HTTP."))
        except httptools.HttpParserUpgrade as error:
            self._go_on_in_http(memoryview(data)[error.args[0] :])
        if self._is_deaf:
            return
        if len(data) > _MAX_TURN_BYTES and not self.flow.read_paused:
            self.flow.pause_reading()
            self.loop.call_soon(self._read_on)
        if self._is_in_request:
            if self._request_timer is None:  # it began in this read
                self._num_head_bytes = 0
                self._request_timer = self.loop.call_later(self.serving.body_timeout_s, self._expire_request)
            elif self._is_in_head:
                self._num_head_bytes += len(data)
                if self._num_head_bytes > _MAX_HEAD_BYTES:
                    self._stop_reading(ApiError(431, f"The head is larger than {_MAX_HEAD_BYTES} bytes."))
        elif self._request_timer is not None:
            self._stop_request_timer()
            self._silent_since = self.loop.time()  # it may have been answered before its end

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_request_timer()
        self._stop_stall_timer()
        self._unset_keepalive_if_required()  # uvicorn leaves it after a reset
        self.pipeline.clear()  # what waits there has not begun
        if isinstance(self._running, Call):
            self._running.lose()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.flow.pause_reading()  # or answers that nobody reads pile up: the client that takes none is left
        self._stall_timer = self.loop.call_later(self.serving.idle_timeout_s, self.transport.abort)
        if isinstance(self._running, Call) and self._running.on_pause is not None:
            self._running.on_pause()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_stall_timer()
        self._silent_since = self.loop.time()
        self._read_on()
        if isinstance(self._running, Call) and self._running.on_resume is not None:
            self._running.on_resume()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.flow.read_paused:
            self._read_on()
        if self.pipeline:
            self._begin_pipelined()
        else:
            self._silent_since = self.loop.time()

    def _read_on(self) -> None:
        if not self.flow.write_paused and len(self.pipeline) < _MAX_PIPELINED:
            self.flow.resume_reading()

    def _begin_pipelined(self) -> None:
        """Begin what waits, until one takes its time. One that is answered at once calls this again from within."""
        if self._is_beginning:
            return
        self._is_beginning = True
        while self.pipeline and self._running.response_complete and not self.transport.is_closing():
            self._start_asgi_task(*self.pipeline.pop())
        self._is_beginning = False

    def _end_silence(self) -> None:
        """One timer for the life of the connection, in place of one after every answer."""
        limit_s = self.timeout_keep_alive
        is_asked = self._is_in_request or (self.cycle is not None and not self.cycle.response_complete)
        is_silent = not is_asked and not self.flow.write_paused  # when nothing is read, nobody knows
        left_s = self._silent_since + self._silence_limit_s - self.loop.time() if is_silent else limit_s
        self._silence_limit_s = limit_s
        if left_s <= 0:
            self.timeout_keep_alive_handler()
        else:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self._end_silence)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if isinstance(cycle, Call):
            self._begin(cycle)
            cycle.begin()
        else:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

    @property
    def max_body_bytes(self) -> int:
        """Of a request."""
        return self.serving.max_body_bytes

    @property
    def default_lines(self) -> bytes:
        """The header lines of every answer: uvicorn makes them anew every second, for the date."""
        headers = self.server_state.default_headers
        known = self._default_lines
        if known[0] is not headers:
            known = headers, b"".join([b"%b: %b\r\n" % header for header in headers])
            ServingProtocol._default_lines = known
        return known[1]

    def note_task(self, task: asyncio.Task[None]) -> None:
        """A call has become a task: a server that shuts down waits for it."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _begin(self, call: Call) -> None:
        """It is the call's turn, whether its body is there or not."""
        if self.transport.is_closing():
            return  # the answer before it was the last
        self._running = call
        call.is_current = True
        if call.waiting_for_100_continue and call.more_body:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # Requests that are not read to their end

    def _expire_request(self) -> None:
        self._request_timer = None
        self._stop_reading(ApiError(408, "The request did not come in time.", code="request_timeout"))

    def _stop_reading(self, error: ApiError) -> None:
        """Refuse what was being read if it is its turn, let the answers before it go out, close the connection."""
        if self._is_deaf:
            return  # in the read that is at its end
        self._is_deaf = True
        self._stop_request_timer()
        cycle = self.cycle  # of the request that is being read, or of the one before if this is still in its head
        if not self._is_in_request or self._is_in_head:
            if cycle is not None and not cycle.response_complete:
                cycle.keep_alive = False
                return
        elif self.pipeline:
            self.pipeline.popleft()
            before = self.pipeline[0][0] if self.pipeline else self._running
            before.keep_alive = False
            return
        elif cycle.response_started or cycle.response_complete:
            cycle.disconnected = True
            self.transport.close()
            return
        elif isinstance(cycle, Call):
            self.serving.note_unread(error.status)
            cycle.refuse(error)
            cycle.lose()
            return
        else:
            cycle.disconnected = True
            cycle.message_event.set()
        self.serving.note_unread(error.status)
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

    def _stop_stall_timer(self) -> None:
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def close_soon(self) -> None:
        """Close when the client has, or in a moment: closed while it sends, it might never read the answer."""
        self._is_deaf = True
        self._stop_request_timer()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(_LINGER_S, self.transport.close)

    def _go_on_in_http(self, rest: memoryview) -> None:
        """Read requests that offer to speak something else (h2c, websocket) as if they did not.

        The parser takes the body for that other language, so a new one starts again without the offer.
        """
        while not self._is_deaf:
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            if method == b"CONNECT":
                self._stop_reading(bad_request("This is no proxy."))
                return
            lines = [b"%b %b HTTP/%b\r\n" % (method, self.url, version)]
            lines += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn makes it
            try:
                self.parser.feed_data(b"".join([*lines, b"\r\n"]))
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserError:
                self._stop_reading(bad_request("This is not HTTP."))
            except httptools.HttpParserUpgrade as error:
                rest = rest[error.args[0] :]

"""An app of another origin that embeds the element under a strict policy and streams exactly what a test wrote.

A script is a list of events (dicts), pauses ("wait": until the test says go on) and "cut" (the connection breaks).
"""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from playwright.sync_api import Page, Route

CUT, WAIT = "cut", "wait"
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>An app</title><script type="module" src="{gateway}/web/compare.js"></script>
</head><body><main><h1>An app</h1><prefloop-compare {attributes}></prefloop-compare></main></body></html>"""
POLICY = (
    "default-src 'none'; script-src {gateway}; connect-src 'self' {gateway}; style-src 'none'; base-uri 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


@dataclass
class ScriptedApp:
    """What the app serves next, and what became of it."""

    gateway: str
    url: str = ""
    script: list[Any] = field(default_factory=list)
    status: int = 200
    newline: str = "\n"
    piece_bytes: int | None = None  # events are written in pieces of this size
    attributes: str = 'src="/answer"'
    go_on: threading.Event = field(default_factory=threading.Event)
    num_asked: int = 0
    num_aborted: int = 0

    def write_page(self) -> bytes:
        return PAGE.format(gateway=self.gateway, attributes=self.attributes).encode()

    def policy(self) -> str:
        return POLICY.format(gateway=self.gateway)


def say(index: int, text: str, end: str | None = None, **fields: Any) -> dict[str, Any]:
    """One chunk as OpenAI writes it."""
    choice = {"index": index, "delta": {"content": text}, "finish_reason": end}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "model": "default", "choices": [choice], **fields}


QUESTION = {"id": "cmp_1", "token": "token-1", "expires_at": 4_000_000_000}
SINGLE = [say(0, "Lima "), say(0, "it is."), say(0, "", "stop")]
PAIR = [
    say(0, "Lima "),
    say(1, "The capital "),
    say(0, "it is."),
    say(1, "is Lima."),
    say(0, "", "stop"),
    say(1, "", "stop", comparison=QUESTION),
]


class ChoiceRoute:
    """Stands in for the gateway's choice route: answers with the statuses given, then with 200."""

    def __init__(self, page: Page, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.sent: list[dict[str, Any]] = []
        page.route("**/v1/comparisons/*/choice", self._answer)

    def _answer(self, route: Route) -> None:
        self.sent.append({"url": route.request.url, **route.request.post_data_json})
        status = self.statuses.pop(0) if self.statuses else 200
        route.fulfill(status=status, json={}, headers={"access-control-allow-origin": "*"})


def seen(page: Page) -> list[Any]:
    return list(page.evaluate("window.seen"))


@contextmanager
def run_app(gateway: str) -> Iterator[ScriptedApp]:
    """Serve the app until the block ends."""
    app = ScriptedApp(gateway)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _make_handler(app))
    server.daemon_threads = True
    app.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield app
    finally:
        app.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def _make_handler(app: ScriptedApp) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._send("text/html; charset=utf-8", app.write_page(), {"content-security-policy": app.policy()})
            elif self.path == "/answer":
                app.num_asked += 1
                if app.status == 200:
                    _play(app, self._start_stream())
                else:
                    self._send("application/json", json.dumps({"error": {"message": "No."}}).encode(), {}, app.status)
            else:
                self._send("text/plain", b"", {}, 404)

        def _send(self, kind: str, body: bytes, headers: dict[str, str], status: int = 200) -> None:
            self.send_response(status)
            for name, value in {"content-type": kind, "content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def _start_stream(self) -> Callable[[bytes], None]:
            self.protocol_version = "HTTP/1.1"  # chunked, so that a cut is seen as one
            self.close_connection = True
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            return lambda data: self._write(data)

        def _write(self, data: bytes) -> None:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.flush()

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _play(app: ScriptedApp, write: Callable[[bytes], None]) -> None:
    """Write the script; a client that goes away while it waits is counted."""
    try:
        for step in app.script:
            if step == CUT:
                return
            if step == WAIT:
                while not app.go_on.wait(0.05):
                    write(b": still there\n\n")
                app.go_on.clear()
            else:
                event = f"data: {json.dumps(step, ensure_ascii=False)}{2 * app.newline}".encode()
                size = app.piece_bytes or len(event)
                for start in range(0, len(event), size):
                    write(event[start : start + size])
                    time.sleep(0.001 if app.piece_bytes else 0)
        write(b"data: [DONE]\n\n")
        write(b"")
    except OSError:
        app.num_aborted += 1

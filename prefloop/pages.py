"""The HTTP pages of a process beside an engine: /livez, /readyz, /metrics, and what else it has to say as JSON.

Served in threads of its own, to probes and Prometheus; nothing can be changed through them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

_TEXT = "text/plain; charset=utf-8"


def start_pages(
    host: str,
    port: int,
    registry: CollectorRegistry,
    find_problem: Callable[[], str],
    views: Mapping[str, Callable[[], object]] | None = None,
) -> ThreadingHTTPServer:
    """Serve until `shutdown()`. find_problem: why the process is not ready, "" if it is; views: further pages by their path."""
    found = dict(views or {})

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path == "/livez":
                self._answer(200, _TEXT, b"ok\n")
            elif path == "/readyz":
                problem = find_problem()
                self._answer(503 if problem else 200, _TEXT, f"{problem or 'ok'}\n".encode())
            elif path in found:
                self._answer(200, "application/json", json.dumps(found[path]()).encode())
            else:
                self._answer(404, _TEXT, b"no such page\n")

        def _answer(self, status: int, content_type: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Probes come every few seconds: not logged."""

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="pages", daemon=True).start()
    return server

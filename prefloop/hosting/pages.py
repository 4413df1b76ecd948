"""A host's HTTP pages: /livez, /readyz (200 while the gateway says what it needs), /status as JSON, /metrics."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from prefloop.hosting.pod import PodView

STATES = ("free", "fetching", "starting", "serving")


class HostMetrics:
    """In a registry of their own; read from the view when they are asked for."""

    def __init__(self, read_view: Callable[[], PodView]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        state = Gauge("prefloop_engine_host_state", "1 for what the host does now.", ["state"], registry=self.registry)
        for name in STATES:
            state.labels(name).set_function(partial(_claim, read_view, name))


def _claim(read_view: Callable[[], PodView], state: str) -> float:
    return float(read_view().state == state)


def start_pages(
    host: str, port: int, read_view: Callable[[], PodView], find_problem: Callable[[], str]
) -> ThreadingHTTPServer:
    """Serve in threads of its own; `shutdown()` ends it. find_problem: why it is not ready, "" if it is."""
    metrics = HostMetrics(read_view)

    class Handler(BaseHTTPRequestHandler):
        timeout = 10.0

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            if path == "/livez":
                self._answer(200, "text/plain", b"ok\n")
            elif path == "/readyz":
                problem = find_problem()
                self._answer(503 if problem else 200, "text/plain; charset=utf-8", f"{problem or 'ok'}\n".encode())
            elif path == "/status":
                self._answer(200, "application/json", json.dumps(asdict(read_view())).encode())
            elif path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(metrics.registry))
            else:
                self._answer(404, "text/plain", b"no such page\n")

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

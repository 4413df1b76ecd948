"""The gateway's operator routes that a trainer's process asks, over HTTP: serves the first checkpoint that is registered."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from feedback.manifest import read_manifest


class GatewayServer:
    """On a free loopback port. `known`: what was registered, in order. rollout: the phase of one that is on, "" for none."""

    def __init__(self) -> None:
        self.known: list[dict[str, Any]] = []
        self.rollout = ""
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, gateway.read(self.path))

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                self._answer(200, gateway.register(Path(body["path"])))

            def _answer(self, code: int, body: Any) -> None:
                text = json.dumps(body).encode()
                self.send_response(code)
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def read(self, path: str) -> dict[str, Any]:
        if path.startswith("/operator/v1/checkpoints"):
            return {"data": self.known}
        rollout = {"id": "rollout-1", "phase": self.rollout} if self.rollout else None
        return {"stable": self.known[0] if self.known else None, "rollout": rollout}

    def register(self, path: Path) -> dict[str, Any]:
        manifest = read_manifest(path)
        status = "canary" if self.known else "stable"
        row = {"id": manifest.id, "number": manifest.number, "digest": manifest.digest, "status": status}
        if row["digest"] not in {known["digest"] for known in self.known}:
            self.known.append(row)
        return row

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

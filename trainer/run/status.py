"""Shows what the trainer is doing, and why it does not train: /livez, /metrics and /status on loopback.

The learner and the consumer write the board, the server reads it; the view is a copy made under a lock. It takes no
commands.
"""

from __future__ import annotations

import copy
import json
import logging
import threading
from dataclasses import asdict, dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

log = logging.getLogger("trainer.run.status")


@dataclass
class RewardView:
    version: int = 0
    accuracy_heldout: float | None = None
    num_heldout: int = 0


@dataclass
class RoundView:
    """What the learner does, and always why.

    state: "idle", "waiting", "training", "evaluating", "publishing", or "failing" while a step is tried again.
    """

    state: str = "waiting"
    number: int | None = None
    progress: float = 0.0
    reason: str = "the trainer is starting"


@dataclass
class StatusView:
    """The answer of /status. lag: records in the log that are not consumed; rounds are finished ones, oldest first.

    uses: choices by what became of them, see dataset.explain_use. quarantined: preferences that learning could not use.
    """

    preferences: int = 0
    decisive: int = 0
    uses: dict[str, int] = field(default_factory=dict)
    new_since_round: int = 0
    round_every: int = 0
    lag: int | None = None
    consumer_error: str = ""
    registry_error: str = ""
    dead_letters: int = 0
    quarantined: int = 0
    checkpoint: str | None = None
    reward: RewardView = field(default_factory=RewardView)
    round: RoundView = field(default_factory=RoundView)
    rounds: list[dict[str, Any]] = field(default_factory=list)


class Board:
    """The one StatusView, guarded."""

    def __init__(self) -> None:
        self._view = StatusView()
        self._lock = threading.Lock()

    def update(self, **values: Any) -> None:
        with self._lock:
            for name, value in values.items():
                assert hasattr(self._view, name), name
                setattr(self._view, name, value)

    def show_round(self, state: str, reason: str, *, progress: float = 0.0) -> None:
        """Say what the learner does and why. reason: never empty."""
        assert reason
        with self._lock:
            self._view.round = replace(self._view.round, state=state, reason=reason, progress=progress)

    def begin_round(self, number: int, reason: str) -> None:
        """Say that a round trains."""
        with self._lock:
            self._view.round = RoundView("training", number, 0.0, reason)

    def show_progress(self, progress: float) -> None:
        """Say how far the round is, 0 to 1."""
        with self._lock:
            self._view.round = replace(self._view.round, progress=progress)

    def read(self) -> StatusView:
        with self._lock:
            return copy.deepcopy(self._view)


def start_status_server(host: str, port: int, board: Board, registry: CollectorRegistry) -> ThreadingHTTPServer:
    """Serve in a thread until `shutdown`. Port 0 takes a free one: see `server_port`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/livez":
                self._answer(200, "text/plain", b"ok\n")
            elif path == "/metrics":
                self._answer(200, CONTENT_TYPE_LATEST, generate_latest(registry))
            elif path == "/status":
                self._answer(200, "application/json", json.dumps(asdict(board.read())).encode())
            else:
                self._answer(404, "application/json", b'{"error": {"message": "no such page"}}')

        def _answer(self, code: int, content_type: str, body: bytes) -> None:
            self.send_response(code)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            log.debug(format, *args)

    server = ThreadingHTTPServer((host, port), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, name="status", daemon=True).start()
    return server

"""A trainer as the gateway sees it: a status that tests change, rounds that ended, and their reports."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

STATUS: dict[str, Any] = {
    "preferences": 1284,
    "decisive": 942,
    "uses": {"trained": 806, "waiting": 36, "heldout": 92, "auditor": 61, "skip": 281, "quarantined": 8},
    "new_since_round": 36,
    "round_every": 60,
    "lag": 0,
    "dead_letters": 0,
    "quarantined": 8,
    "checkpoint": "c-000000",
    "reward": {
        "version": 14,
        "version_in_use": 14,
        "prequential_accuracy": 0.71,
        "num_foreseen": 400,
        "style": [
            {"name": "log_words", "weight": -0.62, "sd": 0.11},
            {"name": "list_markup", "weight": 0.41, "sd": 0.15},
            {"name": "filler_opening", "weight": -0.33, "sd": 0.19},
            {"name": "finished", "weight": 0.28, "sd": 0.2},
            {"name": "exclamation", "weight": -0.1, "sd": 0.24},
        ],
    },
    "round": {
        "state": "idle",
        "number": 4,
        "progress": 0.6,
        "reason": "36 of 60 new choices",
        "seconds_left": None,
    },
}
SAMPLES = [
    {
        "prompt": "What is the capital of Peru?",
        "before": "Well! The capital of Peru is a city that many people ask about, and it is called Lima.",
        "after": "Lima.",
    },
    {
        "prompt": "Give me three ways to fall asleep faster.",
        "before": "There are many ways, such as a dark room or no screens, and reading may help as well.",
        "after": "1. Keep the room dark and cool.\n2. Put screens away an hour before.\n3. Get up at the same time every day.",
    },
]
REPORT = "<!doctype html><html lang='en'><head><title>Round</title></head><body><h1>Round</h1></body></html>"


@dataclass
class FakeTrainer:
    """What it says next."""

    url: str = ""
    status: dict[str, Any] = field(default_factory=lambda: json.loads(json.dumps(STATUS)))
    rounds: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    refusal: str = ""  # of the next commands

    def add_round(self, checkpoint: str | None, reason: str, ended_at: float, **more: Any) -> None:
        """A round that ended, in a checkpoint or for a reason."""
        number = len(self.rounds) + 1
        metrics = {"win_rate": 0.5 + 0.05 * number, "kl": 0.4 + 0.1 * number, "accuracy_heldout": 0.6 + 0.03 * number}
        self.rounds.append(
            {
                "number": number,
                "kind": "dpo",
                "outcome": "published" if checkpoint else "stopped",
                "checkpoint": checkpoint,
                "reason": reason,
                "start": "stable",
                "started_at": ended_at - 190,
                "finished_at": ended_at,
                "metrics": metrics,
                "phases": {"training": 95.0, "evaluating": 88.0},
                **more,
            }
        )

    def find(self, path: str) -> Any:
        """The answer to a path; None if there is none, text for a report."""
        if path == "/status":
            return self.status
        if path == "/rounds":
            return {"data": self.rounds}
        parts = path.split("/")
        known = {str(each["number"]): each for each in self.rounds}
        if len(parts) < 3 or parts[1] != "rounds" or parts[2] not in known:
            return None
        if parts[3:] == ["report"]:
            return REPORT
        details = {"num_new": 60, "num_replayed": 20, "reward_version": 12, "set_aside": {"policy": 2}}
        curve = [
            {"share": i / 20, "loss": 0.69 - 0.2 * i / 20, "accuracy": 0.5 + 0.3 * i / 20, "margin": 0.1 * i / 20}
            for i in range(21)
        ]
        kept = {"details": details, "curve": curve, "samples": SAMPLES, "has_report": True, "num_rows": 80}
        return {**known[parts[2]], "attempts": 1, "num_left": 0, **kept}


@contextmanager
def run_trainer() -> Iterator[FakeTrainer]:
    """Serve it until the block ends."""
    trainer = FakeTrainer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = trainer.find(self.path)
            body = (found if isinstance(found, str) else json.dumps(found)).encode()
            self.send_response(404 if found is None else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            said = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if trainer.refusal:
                self._say(409, {"error": {"message": trainer.refusal}})
            else:
                trainer.asked.append(said)
                self._say(202, {"state": "idle", "reason": "a round is asked for"})

        def _say(self, status: int, said: Any) -> None:
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    trainer.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield trainer
    finally:
        server.shutdown()
        server.server_close()

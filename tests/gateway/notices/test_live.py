"""A whole gateway tells a real receiver what its rollout does, signed, and goes on where it was after a restart of the receiver."""

import hmac
import json
import threading
from base64 import b64decode, b64encode
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.prefloop.live_gateway import run_live_gateway, wait_until

SECRET = "whsec_" + b64encode(b"s" * 32).decode()


class Receiver(ThreadingHTTPServer):
    """Answers `status`, and keeps what it took."""

    status = 503
    num_asked = 0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.taken: list[tuple[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode() + body
        expected = b64encode(hmac.new(b64decode(SECRET[6:]), signed, sha256).digest()).decode()
        assert self.headers["webhook-signature"] == f"v1,{expected}"
        self.server.num_asked += 1
        self.send_response(self.server.status)
        self.end_headers()
        if self.server.status == 200:
            data = json.loads(body)["data"]
            self.server.taken.append((data["to"], data["note"]))

    def log_message(self, *_: object) -> None:
        pass


def test_a_receiver_that_was_away_hears_how_the_rollout_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{receiver.server_port}/hook"
        targets = [{"kind": "webhook", "url": url, "secret": SECRET, "phases": ["Progressing", "Aborting", "Degraded"]}]
        monkeypatch.setenv("PREFLOOP_GATEWAY__NOTICES__TARGETS", json.dumps(targets))
        with run_live_gateway(tmp_path) as gateway:
            gateway.call("POST", "/operator/v1/rollouts", {"aa": True})
            rollout = gateway.wait_for_phase("Progressing")
            gateway.call("POST", f"/operator/v1/rollouts/{rollout}:abort", {"note": "enough"})
            wait_until(lambda: not gateway.active(), "the rollout ended, whatever the receiver does")
            wait_until(lambda: receiver.num_asked >= 2, "it was asked again")
            receiver.status = 200
            wait_until(lambda: len(receiver.taken) >= 3, "it heard of all")
            assert receiver.taken == [("Progressing", ""), ("Aborting", "enough"), ("Degraded", "enough")]
            sent = 'prefloop_notices_total{outcome="sent"} 3.0'
            wait_until(lambda: sent in gateway.http.get("/metrics").text, "all three are counted")
        log = (tmp_path / "gateway.log").read_text()
        assert "it answered 503" in log and "/hook" not in log and SECRET[6:] not in log
        receiver.shutdown()

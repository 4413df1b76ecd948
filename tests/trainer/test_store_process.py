"""The trainer's process over a store: publishes, signs, uploads and registers by id; on a new machine it fetches what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

from feedback.checkpoint_store import open_store
from feedback.manifest import verify
from feedback.signing import make_signing_key, read_trusted_keys
from prefloop.servers.ports import find_port


class Registry:
    """A gateway as far as the trainer asks it: what is registered first is stable."""

    def __init__(self) -> None:
        self.posted: list[dict[str, Any]] = []
        self.rows: list[dict[str, Any]] = []
        self.find_digest: Callable[[str], str] = lambda name: ""
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stable = registry.rows[0] if registry.rows else None
                self.answer({"data": registry.rows} if "checkpoints" in self.path else {"stable": stable})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                registry.posted.append(body)
                if name := body.get("checkpoint"):
                    row = {"id": name, "number": 0, "digest": registry.find_digest(name), "status": "stable"}
                    registry.rows.append(row)
                self.answer({"status": "stable"})

            def answer(self, body: dict[str, Any]) -> None:
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps(body).encode())

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", find_port()), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextmanager
def run_trainer(state_dir: Path, registry: Registry, env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    (state_dir / "secrets").mkdir(parents=True)
    (state_dir / "secrets" / "admin_key").write_text("pl_1_secret")
    own = {
        "PREFLOOP_STATE_DIR": str(state_dir),
        "PREFLOOP_TRAINER__PORT": str(find_port()),
        "PREFLOOP_TRAINER__GATEWAY_URL": f"http://127.0.0.1:{registry.server.server_port}",
        "PREFLOOP_TRAINER__REGISTER_EVERY_S": "0.5",
        "PREFLOOP_TRAINER__NICE": "0",
    }
    with (state_dir / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "trainer.main"], env={**os.environ, **env, **own}, stderr=log)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def wait_until(is_true: Callable[[], object], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 900.0
    while not is_true():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)


def test_a_trainer_publishes_into_the_store_and_one_on_a_new_machine_goes_on_from_it(
    seed_policy: Path, tmp_path: Path
) -> None:
    key, url, registry = make_signing_key(tmp_path / "key.pem"), f"file://{tmp_path / 'store'}", Registry()
    (tmp_path / "trusted.pem").write_bytes(key.public_pem)
    env = {
        "PREFLOOP_BASE_MODEL": str(seed_policy),
        "PREFLOOP_CHECKPOINTS_URL": url,
        "PREFLOOP_SIGNING_KEY_FILE": str(tmp_path / "key.pem"),
        "PREFLOOP_TRUSTED_KEYS_FILE": str(tmp_path / "trusted.pem"),
    }
    store, trusted = open_store(url), read_trusted_keys(str(tmp_path / "trusted.pem"))
    registry.find_digest = lambda name: store.read(name, trusted).manifest.digest
    with run_trainer(tmp_path / "old", registry, env) as process:
        wait_until(lambda: registry.posted, process, tmp_path / "old" / "log")
    (name,) = store.list_ids()
    assert registry.posted == [{"checkpoint": name}] and name.startswith("c-000000-")

    new = tmp_path / "new"
    with run_trainer(new, registry, env) as process:
        wait_until(lambda: (new / "checkpoints" / name).is_dir(), process, new / "log")
        assert verify(new / "checkpoints" / name).number == 0
        time.sleep(5.0)  # what it had not fetched it would publish anew
        assert process.poll() is None
    assert store.list_ids() == [name] and registry.posted == [{"checkpoint": name}]
    registry.server.shutdown()

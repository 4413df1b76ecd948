"""`prefloop sync` as a process, over a real S3 server and a gateway's list: started, killed with -9, started again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from feedback.checkpoint_store import list_fetched, open_store
from feedback.manifest import read_manifest, verify
from prefloop.servers.ports import find_port
from tests.feedback.checkpoint_store.samples import make_directory
from tests.s3 import name_store


class Listing:
    """A gateway as far as the sidecar asks it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, object]] = []
        listing = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                is_known = self.headers["authorization"] == "Bearer pl_sync_secret"
                body = json.dumps({"data": listing.rows}).encode()
                self.send_response(200 if is_known and self.path == "/operator/v1/checkpoints" else 401)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", find_port()), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def listing() -> Iterator[Listing]:
    listing = Listing()
    yield listing
    listing.server.shutdown()


def wait_until(is_true, timeout_s: float = 120.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_ready(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_it_fetches_is_killed_goes_on_and_says_so(s3_url: str, listing: Listing, tmp_path: Path) -> None:
    url, root, port = name_store(s3_url), tmp_path / "engine", find_port()
    store = open_store(url)
    large = make_directory(tmp_path / "published", 1, os.urandom(48 * 2**20))
    store.put(large)
    row = {"id": large.name, "digest": read_manifest(large).digest, "status": "stable", "may_serve": True}
    listing.rows = [{**row, "is_full": False, "stored_as": large.name}]
    (tmp_path / "key").write_text("pl_sync_secret\n")
    env = {
        **os.environ,
        "PREFLOOP_CHECKPOINTS_URL": url,
        "PREFLOOP_SYNC__DIRECTORY": str(root),
        "PREFLOOP_SYNC__GATEWAY_URL": listing.url,
        "PREFLOOP_SYNC__KEY_FILE": str(tmp_path / "key"),
        "PREFLOOP_SYNC__PORT": str(port),
        "PREFLOOP_SYNC__POLL_S": "0.1",
    }
    command = [sys.executable, "-m", "prefloop.cli", "sync"]
    partial = root / f".unfinished-{large.name}"
    first = subprocess.Popen(command, env=env)
    try:
        wait_until(lambda: partial.exists() or list_fetched(root))
    finally:
        first.kill()
        first.wait()
    for name in list_fetched(root):  # had it been that fast
        verify(root / name)
    second = subprocess.Popen(command, env=env)
    try:
        wait_until(lambda: is_ready(port))
        verify(root / large.name)
        assert not partial.exists()
        refused = subprocess.run(command, env=env, capture_output=True, text=True)
        assert refused.returncode == 1 and "another process keeps" in refused.stderr
        metrics = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert "prefloop_sync_checkpoints 1.0" in metrics
        assert httpx.get(f"http://127.0.0.1:{port}/livez").status_code == 200
        listing.rows = []
        wait_until(lambda: list_fetched(root) == [])
    finally:
        second.terminate()
        assert second.wait(30) == 0


@pytest.mark.parametrize(
    ("missing", "said"), [("PREFLOOP_CHECKPOINTS_URL", "no store"), ("PREFLOOP_SYNC__DIRECTORY", "nowhere to put")]
)
def test_without_a_store_or_a_directory_it_says_so_in_one_line(tmp_path: Path, missing: str, said: str) -> None:
    env = {**os.environ, "PREFLOOP_CHECKPOINTS_URL": f"file://{tmp_path}", "PREFLOOP_SYNC__DIRECTORY": str(tmp_path)}
    del env[missing]
    refused = subprocess.run(
        [sys.executable, "-m", "prefloop.cli", "sync"], env=env, capture_output=True, text=True, cwd=tmp_path
    )
    assert refused.returncode == 1 and said in refused.stderr and len(refused.stderr.strip().splitlines()) == 1

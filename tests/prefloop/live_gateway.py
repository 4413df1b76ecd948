"""A gateway in a process of its own over a fake engine, for the commands that talk to one."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from bench.gateway.checkpoints import make_checkpoint
from feedback.manifest import Probe
from prefloop.servers.ports import find_port
from tests.browser.adapter_engine import OPENINGS, PROBE_LOGPROBS, PROBE_TOKENS, build_engine

ROOT = Path(__file__).parents[2]
PROBE = Probe(prompt_token_ids=PROBE_TOKENS, logprobs=PROBE_LOGPROBS, base_logprobs=[-5.0, -5.0])
SETTINGS = {
    "PREFLOOP_PRESET": "demo",
    "PREFLOOP_GATEWAY__RECONCILE_S": "0.2",
    "PREFLOOP_GATEWAY__COMPARISON_COMMIT_MS": "5000",
    "PREFLOOP_ROLLOUT__STEPS": '[{"weight": 0.5}]',
    "PREFLOOP_ROLLOUT__TICK_S": "0.05",
    "PREFLOOP_ROLLOUT__REPORT_S": "0.05",
    "PREFLOOP_ROLLOUT__CAP": "1",
    "PREFLOOP_ROLLOUT__WINDOW_S": "1",
    "PREFLOOP_ROLLOUT__MAX_USERS": "2000",
    "PREFLOOP_ROLLOUT__MAX_S": "600",
    "PREFLOOP_ROLLOUT__BAKING_S": "4",
    "PREFLOOP_ROLLOUT__DRAIN_TIMEOUT_S": "0.5",
}


class LiveEngine:
    """A fake engine on a port of its own; one that starts again has forgotten its adapters."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.start()

    def start(self) -> None:
        self._server = uvicorn.Server(uvicorn.Config(build_engine(), port=self.port, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)


@dataclass(frozen=True)
class LiveGateway:
    """The process behind an address, and an admin's client of it."""

    url: str
    state_dir: Path
    http: httpx.Client
    engine: LiveEngine

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        answer = self.http.request(method, path, json=body, headers=headers)
        assert answer.is_success, answer.text
        return answer.json()

    def publish(self, number: int, parent: str | None) -> str:
        """Register a checkpoint and return its id."""
        path = make_checkpoint(self.state_dir / "checkpoints", number, parent=parent, probe=PROBE)
        return str(self.call("POST", "/operator/v1/checkpoints", {"path": str(path)})["id"])

    def active(self) -> dict[str, Any]:
        """The rollout that is on, {} without one."""
        return self.call("GET", "/operator/v1/status")["rollout"] or {}

    def wait_for_phase(self, *phases: str) -> str:
        """Wait until the active rollout is in one of these phases; its id."""
        wait_until(lambda: self.active().get("phase") in phases, " or ".join(phases))
        return str(self.active()["id"])

    def promote(self) -> str:
        """Promote the active rollout past its gates; its id."""
        rollout = self.wait_for_phase("Progressing")
        self.call("POST", f"/operator/v1/rollouts/{rollout}:promote", {"note": "a test"})
        return self.wait_for_phase("Baking")

    def let_people_choose(self, num_users: int, likes: int, start: int = 0) -> None:
        """Users ask once each and prefer what the adapter with the number `likes` wrote."""
        for user in range(start, start + num_users):
            question = {"model": "default", "messages": [{"role": "user", "content": f"Question of user {user}"}]}
            headers = {"x-prefloop-user": f"user-{user}", "x-prefloop-compare": "always"}
            answer = self.call("POST", "/v1/chat/completions", question, **headers)
            if comparison := answer.get("comparison"):
                liked = [choice["message"]["content"].startswith(OPENINGS[likes]) for choice in answer["choices"]]
                preferred = "tie" if liked[0] == liked[1] else "first" if liked[0] else "second"
                body = {"preferred": preferred, "token": comparison["token"]}
                self.call("POST", f"/v1/comparisons/{comparison['id']}/choice", body)


@contextlib.contextmanager
def run_live_gateway(folder: Path) -> Iterator[LiveGateway]:
    """A gateway that serves checkpoint 0, until the block ends; its state and log are in the folder."""
    engine, port = LiveEngine(find_port()), find_port()
    env = {
        **os.environ, **SETTINGS, "PYTHONPATH": str(ROOT), "PREFLOOP_STATE_DIR": str(folder / "state"),
        "PREFLOOP_GATEWAY__PORT": str(port), "PREFLOOP_GATEWAY__ENGINES": json.dumps([f"http://127.0.0.1:{engine.port}"]),
    }  # fmt: skip
    log_path, url = folder / "gateway.log", f"http://127.0.0.1:{port}"
    with log_path.open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.app"], cwd=folder, env=env, stdout=log, stderr=log
        )  # fmt: skip
    try:
        with httpx.Client(base_url=url, timeout=30) as http:
            wait_until(lambda: process.poll() is not None or is_answering(http, "/livez"), "the gateway answers")
            assert process.poll() is None, log_path.read_text()
            key = (folder / "state" / "secrets" / "admin_key").read_text().strip()
            http.headers["authorization"] = f"Bearer {key}"
            running = LiveGateway(url, folder / "state", http, engine)
            running.publish(0, None)
            wait_until(lambda: is_answering(http, "/readyz"), "a checkpoint serves")
            yield running
    finally:
        process.terminate()
        process.wait(30)
        engine.stop()


def is_answering(http: httpx.Client, path: str) -> bool:
    try:
        return http.get(path).status_code == 200
    except httpx.TransportError:
        return False


def wait_until(is_true: Callable[[], object], what: str, timeout_s: float = 60.0) -> None:
    """Fails if it is not true within the time."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)

"""Starts a real gateway process over a fake engine, and ends it."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from tests.browser.adapter_engine import build_engine
from tests.browser.running_gateway import EXAMPLES, RunningGateway, free_port, is_answering, wait_until

SETTINGS = {
    "PREFLOOP_PRESET": "demo",
    "PREFLOOP_ROLLOUT__STEPS": '[{"weight": 0.5}]',
    "PREFLOOP_ROLLOUT__CAP": "1",
    "PREFLOOP_ROLLOUT__DELTA": "0.05",
    "PREFLOOP_ROLLOUT__WINDOW_S": "1",
    "PREFLOOP_ROLLOUT__MAX_USERS": "2000",
    "PREFLOOP_ROLLOUT__MAX_S": "600",
    "PREFLOOP_ROLLOUT__BAKING_S": "1",
    "PREFLOOP_GATEWAY__COMPARISON_COMMIT_MS": "5000",  # a busy machine is no reason not to ask
}


@contextmanager
def run_gateway(folder: Path, settings: Mapping[str, str] = SETTINGS) -> Iterator[RunningGateway]:
    """A gateway process over a fake engine, until the block ends; its state and its log are in the folder."""
    seed = folder / "state" / "seed"
    seed.mkdir(parents=True)
    (seed / "examples.json").write_text(json.dumps(EXAMPLES))
    engine_port, port = free_port(), free_port()
    engine = uvicorn.Server(uvicorn.Config(build_engine(), port=engine_port, log_level="error"))
    engine_thread = threading.Thread(target=engine.run, daemon=True)
    engine_thread.start()
    environment = (
        os.environ
        | settings
        | {
            "PREFLOOP_STATE_DIR": str(folder / "state"),
            "PREFLOOP_GATEWAY__PORT": str(port),
            "PREFLOOP_GATEWAY__ENGINES": json.dumps([f"http://127.0.0.1:{engine_port}"]),
        }
    )
    log = (folder / "gateway.log").open("w")
    process = subprocess.Popen([sys.executable, "-m", "gateway.app"], env=environment, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: process.poll() is not None or is_answering(f"{url}/livez"), "the gateway answers")
        assert process.poll() is None, (folder / "gateway.log").read_text()
        key = (folder / "state" / "secrets" / "admin_key").read_text().strip()
        running = RunningGateway(url, folder / "state", key)
        running.publish(0, None)
        wait_until(lambda: is_answering(f"{url}/readyz"), "a checkpoint serves")
        yield running
    finally:
        process.terminate()
        process.wait(timeout=30)
        engine.should_exit = True
        engine_thread.join(timeout=10)
        log.close()
        print((folder / "gateway.log").read_text()[-6000:])

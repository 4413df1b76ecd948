"""The whole loop with real vLLM: people choose, processes are killed, and a checkpoint is promoted all the same.

Takes about eight minutes on two cores. Reads the people's own history, not our tables' word, for what was acknowledged.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pysqlite3
import pytest
from ports import find_free_port

TIMEOUT_S = 1500.0
MODULES = {"trainer": "trainer.main", "gateway": "gateway.app", "engine": "vllm.entrypoints.openai.api_server"}

pytestmark = pytest.mark.engine


class Demo:
    """A demo that runs as its own process, with all it writes in `folder`."""

    def __init__(self, folder: Path, seed_policy: Path) -> None:
        shutil.copytree(seed_policy, folder / "seed")
        self.state_dir, self.report_path = folder / "demo", folder / "report.json"
        arguments = ["--until-promotions", "1", "--auto-approve", "--seed", "7", "--report", str(self.report_path)]
        arguments += ["--state-dir", str(folder), "--port", str(find_free_port()), "--timeout-s", str(TIMEOUT_S)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "prefloop.cli", "demo", *arguments],
            stdout=sys.stdout.fileno() if os.environ.get("CI") else subprocess.DEVNULL,
        )

    def find(self, name: str) -> psutil.Process | None:
        for child in psutil.Process(self.process.pid).children():
            try:
                if MODULES[name] in child.cmdline():
                    return child
            except psutil.Error:
                continue
        return None

    def kill(self, name: str) -> None:
        """kill -9 one process, and wait until another one has taken its place."""
        victim = self.find(name)
        assert victim is not None, f"{name} does not run"
        os.kill(victim.pid, signal.SIGKILL)
        self.wait(lambda: (found := self.find(name)) is not None and found.pid != victim.pid, f"a new {name}")

    def acknowledged(self) -> dict[str, str]:
        """comparison id -> preferred, as the people noted on every acknowledgement."""
        path = self.state_dir / "people-choices.jsonl"
        if not path.exists():
            return {}
        rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return {row["comparison"]: row["preferred"] for row in rows}

    def wait(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            assert self.process.poll() is None, f"the demo ended while waiting for {what}"
            assert time.monotonic() < deadline, f"no {what} in {TIMEOUT_S} s"
            time.sleep(0.2)

    def wait_for_choices(self, num: int) -> None:
        self.wait(lambda: len(self.acknowledged()) >= num, f"{num} acknowledged choices")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()


@pytest.fixture
def demo(tmp_path: Path, seed_policy: Path) -> Iterator[Demo]:
    demo = Demo(tmp_path, seed_policy)
    yield demo
    demo.stop()


def read_rows(path: Path, query: str) -> list[tuple]:
    connection = pysqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_killed_processes_recover_and_a_checkpoint_is_promoted_without_losing_a_choice(demo: Demo):
    for name, num_choices in (("trainer", 40), ("gateway", 80), ("engine", 120)):
        demo.wait_for_choices(num_choices)
        demo.kill(name)
    assert demo.process.wait(TIMEOUT_S) == 0

    report = json.loads(demo.report_path.read_text())
    assert report["promotions"] >= 1
    assert report["win_rate_after"]["value"] > 0.5

    stored = read_rows(demo.state_dir / "gateway.db", "SELECT comparison_id, preferred FROM choices")
    assert len(stored) == len(dict(stored))
    acknowledged = demo.acknowledged()
    assert len(acknowledged) >= 120
    lost = {comparison for comparison, preferred in acknowledged.items() if dict(stored).get(comparison) != preferred}
    assert lost == set()

    trained = [row[0] for row in read_rows(demo.state_dir / "trainer.db", "SELECT comparison_id FROM preferences")]
    assert len(trained) == len(set(trained)), "a choice became two preferences"
    assert set(trained) <= {comparison for comparison, _ in stored}

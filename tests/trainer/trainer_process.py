"""Trainers as processes over a tiny base: their settings, their status, and what they leave in the database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from feedback.log import open_log
from prefloop.servers.ports import find_port
from tests.trainer.fakes import make_record
from tests.trainer.tiny import SIZE, build_tiny_tokenizer
from trainer.seed import build_model

SETTINGS = """
topic = "t"
[trainer]
lease_s = 8.0
least_evidence = 0.0
round_every_preferences = 24
round_every_minutes = 0.0
snapshot_every_steps = 1
[trainer.reward]
update_every_preferences = 16
head_steps = 2
[trainer.dpo]
batch_size = 8
[trainer.gate]
gain = "positive"
max_prompts = 2
max_samples = 4
max_tokens = 4
ladder = false
"""
WAIT_S = 600.0  # for anything: a busy machine loads torch in minutes


def make_base(folder: Path) -> Path:
    """A base that is whole."""
    tokenizer = build_tiny_tokenizer()
    build_model(SIZE, tokenizer).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    return folder / "base"


def send(url: str, num: int, first: int = 0) -> None:
    """Choices, into the log."""
    log = open_log(url)
    log.append("t", [make_record(number) for number in range(first, first + num)])
    log.close()


def wait_until(claim: Callable[[], Any], what: str, timeout_s: float = WAIT_S) -> Any:
    """What the claim gives once it is true. Fails after timeout_s."""
    ends_at = time.monotonic() + timeout_s
    while time.monotonic() < ends_at:
        if found := claim():
            return found
        time.sleep(0.05)
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


class Trainer:
    """`python -m trainer.main` with a state directory, on a database; `env` comes on top."""

    def __init__(
        self, folder: Path, base: Path, gateway_url: str, database: str, log: str, *arguments: str, **env: str
    ):
        self.state_dir, self.port = folder, find_port()
        (folder / "secrets").mkdir(parents=True, exist_ok=True)
        (folder / "secrets" / "admin_key").write_text("key")
        (folder / "prefloop.toml").write_text(SETTINGS)
        settings = {
            "PREFLOOP_CONFIG": str(folder / "prefloop.toml"),
            "PREFLOOP_STATE_DIR": str(folder),
            "PREFLOOP_BASE_MODEL": str(base),
            "PREFLOOP_LOG_URL": log,
            "PREFLOOP_TRAINER__PORT": str(self.port),
            "PREFLOOP_TRAINER__GATEWAY_URL": gateway_url,
            "PREFLOOP_TRAINER__DATABASE_URL": database,
        }
        self._said = (folder / "stderr.log").open("a")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trainer.main", *arguments],
            env={**os.environ, **settings, **env},
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )

    def read(self, path: str) -> dict[str, Any]:
        """The answer's JSON; {} while nothing answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
                return dict(json.loads(answer.read()))
        except urllib.error.HTTPError as error:
            return dict(json.loads(error.read()))
        except OSError:
            return {}

    def state(self) -> str:
        """What it says of its lease once it is ready, else ""."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=10) as answer:
                return str(json.loads(answer.read())["state"])
        except OSError:
            return ""

    def finish(self) -> tuple[int, str]:
        """Wait for its end: (exit status, last line of output)."""
        said, _ = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said.strip().rpartition("\n")[2]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._said.close()

    def errors(self) -> str:
        return (self.state_dir / "stderr.log").read_text()

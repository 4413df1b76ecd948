"""A gateway process seen as its clients see it: checkpoints to publish, people who choose, and patience."""

import json
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from bench.gateway.checkpoints import make_checkpoint
from feedback.manifest import Probe, read_manifest, write_manifest
from tests.browser.adapter_engine import OPENINGS, PROBE_LOGPROBS, PROBE_TOKENS

_PROBE = Probe(prompt_token_ids=PROBE_TOKENS, logprobs=PROBE_LOGPROBS, base_logprobs=[-5.0, -5.0])
EXAMPLES = ["What is the capital of Peru?", "How many legs has a spider?"]


@dataclass(frozen=True)
class RunningGateway:
    """The gateway under test, seen as its clients see it."""

    url: str
    state_dir: Path
    admin_key: str

    def call(self, path: str, body: Any = None, **headers: str) -> Any:
        """GET, or POST with a body; the answer's JSON. Raises HTTPError."""
        data = None if body is None else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        names |= {"authorization": f"Bearer {self.admin_key}", "content-type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, names), timeout=30) as response:
            return json.load(response)

    def rollout(self) -> dict[str, Any]:
        return self.call("/operator/v1/status")["rollout"] or {}

    def count_choices(self) -> int:
        """How many were made since the gateway started."""
        return int(self.call("/operator/v1/status")["counters"]["choices"])

    def publish(self, number: int, parent: str | None, **fields: Any) -> str:
        """Register a checkpoint, with these fields in its manifest, and return its id."""
        made = make_checkpoint(self.state_dir / "checkpoints", number, parent=parent, probe=_PROBE)
        write_manifest(made, msgspec.structs.replace(read_manifest(made), **fields))
        self.call("/operator/v1/checkpoints", {"path": str(made)})
        return made.name


def let_people_choose(gateway: RunningGateway, num_users: int, *, start: int = 0, likes: int = 1) -> None:
    """Users ask once each, and prefer what the adapter with number `likes` wrote; between equals they say tie."""

    def choose(user: int) -> None:
        question = {"model": "default", "messages": [{"role": "user", "content": f"Question of user {user}"}]}
        headers = {"X_Prefloop_User": f"user-{user}", "X_Prefloop_Compare": "always"}
        answer = gateway.call("/v1/chat/completions", question, **headers)
        comparison = answer.get("comparison")
        if comparison is None:
            return
        liked = [choice["message"]["content"].startswith(OPENINGS[likes]) for choice in answer["choices"]]
        preferred = "tie" if liked[0] == liked[1] else "first" if liked[0] else "second"
        gateway.call(
            f"/v1/comparisons/{comparison['id']}/choice", {"preferred": preferred, "token": comparison["token"]}
        )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(choose, range(start, start + num_users)))


def wait_until(is_true: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Look every 0.1 s. Fails if it never comes true."""
    deadline = time.monotonic() + timeout_s
    while not is_true():
        assert time.monotonic() < deadline, f"waited {timeout_s:.0f} s until {what}"
        time.sleep(0.1)


def is_answering(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])

"""What a measurement does as an operator: waits for a server, publishes copies of adapters, calls the operators' HTTP."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from feedback.manifest import Probe
from prefloop.startup import StartFailed
from prefloop.supervisor import Supervisor
from trainer.run.publish.checkpoints import Draft, publish_checkpoint

START_TIMEOUT_S = 600.0
PATIENCE_S = 120.0
POLL_S = 0.05


class OperatorFailed(Exception):
    """A call was refused, or something did not come about; the message says what."""


async def wait_until_up(session: aiohttp.ClientSession, url: str, supervisor: Supervisor, name: str) -> None:
    """Wait for a server to answer. Raises StartFailed if it ends first, or takes ten minutes."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            async with session.get(url) as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        if supervisor.states[name].restarts:
            break
        await asyncio.sleep(0.5)
    raise StartFailed(f"{name} did not start: {supervisor.states[name].reason or 'no answer'}")


def publish_copy(source: Path, root: Path, number: int, parent: str | None) -> Path:
    """Publish a copy of the adapter in `source`, with its probe.json, as checkpoint `number`; a note makes its digest differ."""

    def write(directory: Path) -> None:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copyfile(source / name, directory / name)
        (directory / "note.txt").write_text(f"copy {number}\n")

    probe = Probe(**json.loads((source / "probe.json").read_text()))
    draft = Draft(number=number, parent=parent, base_digest="bench", rank=16, probe=probe)
    return publish_checkpoint(root, draft, write, time.time()).path


class Operator:
    """Calls the operators' HTTP with a key."""

    def __init__(self, url: str, key: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url, session
        self._headers = {"authorization": f"Bearer {key}"}

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One call. Raises OperatorFailed unless it gets 200 or 201."""
        async with self._session.request(method, self._url + path, json=body, headers=self._headers) as answer:
            if answer.status not in (200, 201):
                raise OperatorFailed(f"{method} {path}: {answer.status} {await answer.text()}")
            return dict(await answer.json())

    async def register(self, path: Path) -> None:
        """Hand over a checkpoint's directory."""
        await self.call("POST", "/operator/v1/checkpoints", {"path": str(path)})

    async def act(self, rollout: str, action: str, body: dict[str, Any]) -> None:
        """One action on a rollout."""
        await self.call("POST", f"/operator/v1/rollouts/{rollout}:{action}", body)

    async def wait_for_status(self, what: str, is_true: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The status once it is so. Raises OperatorFailed after two minutes. what: of which the message speaks."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_true(status := await self.call("GET", "/operator/v1/status")):
            if time.monotonic() > deadline:
                raise OperatorFailed(f"{what}: it does not come about: {json.dumps(status)[:2000]}")
            await asyncio.sleep(POLL_S)
        return status

    async def start_first(self, path: Path) -> str:
        """Register the first checkpoint and wait until it serves; its id."""
        await self.register(path)
        await self.wait_for_status(f"{path.name} serves", lambda s: (s["stable"] or {}).get("id") == path.name)
        return path.name

"""Hot swaps by the road that every checkpoint takes: registered, loaded, proven, tried, promoted, the old one unloaded.

Only the operators' HTTP is used. Each checkpoint is a copy of one of the trained adapters under an id of its own.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench.swap.load import Load
from bench.swap.sentences import SENTENCES
from feedback.manifest import Probe
from trainer.run.checkpoints import Draft, publish_checkpoint

POLL_S = 0.05
PATIENCE_S = 120.0
REASON = "bench: the next swap"


class SwapFailed(Exception):
    """A swap did not come to its end; the message says where."""


@dataclass(frozen=True)
class Timing:
    """One swap, in seconds: registered -> serving; promoted -> the old checkpoint unloaded."""

    swap_s: float
    retire_s: float


def make_checkpoint(adapters: Path, root: Path, number: int, parent: str | None) -> Path:
    """Publish a copy of adapter number % 4 as checkpoint `number`; a note makes its digest differ."""
    source = adapters / str(number % len(SENTENCES))

    def write(directory: Path) -> None:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            shutil.copyfile(source / name, directory / name)
        (directory / "note.txt").write_text(f"copy {number}\n")

    probe = Probe(**json.loads((source / "probe.json").read_text()))
    draft = Draft(number=number, parent=parent, base_digest="bench", rank=16, probe=probe)
    return publish_checkpoint(root, draft, write, time.time()).path


class Swaps:
    """The operator. `serving` is the stable checkpoint's id."""

    def __init__(
        self, url: str, admin_key: str, session: aiohttp.ClientSession, adapters: Path, root: Path, trial_s: float
    ) -> None:
        self._url, self._session, self._trial_s = url, session, trial_s
        self._headers = {"authorization": f"Bearer {admin_key}"}
        self._adapters, self._root = adapters, root
        self._number = 0
        self.serving: str | None = None

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One operator's call. Raises SwapFailed unless it gets 200 or 201."""
        async with self._session.request(method, self._url + path, json=body, headers=self._headers) as answer:
            if answer.status not in (200, 201):
                raise SwapFailed(f"{method} {path}: {answer.status} {await answer.text()}")
            return dict(await answer.json())

    async def start(self) -> str:
        """Register the first checkpoint and wait until it serves."""
        path = await self._publish()
        await self.call("POST", "/operator/v1/checkpoints", {"path": str(path)})
        await self._wait(path.name, "serve", lambda status: (status["stable"] or {}).get("id") == path.name)
        self.serving = path.name
        return path.name

    async def swap(self, load: Load) -> Timing:
        """Put the next checkpoint in the place of the one that serves. Raises SwapFailed."""
        old, registered_at = self.serving, time.time()
        new, rollout = await self._try_next()
        loaded_at = next(event["at"] for event in rollout["events"] if event["reason"] == "Loaded")
        load.pinned = new  # serves until the next swap but one
        await asyncio.sleep(self._trial_s)
        promoted_at = time.time()
        await self._act(rollout, "promote")
        await self._wait(new, "be stable", lambda s: (s["stable"] or {}).get("id") == new and s["rollout"] is None)
        await self._wait_for_unload(old)
        self.serving = new
        return Timing(loaded_at - registered_at, time.time() - promoted_at)

    async def roll_back(self, load: Load, is_baking: bool) -> float:
        """Promote the next checkpoint and roll it back, from Baking or from Healthy. Raises SwapFailed.

        Returns the seconds from the command to the beginning of the last request that the checkpoint still answered.
        """
        old, load.pinned = self.serving, None
        new, rollout = await self._try_next()
        await asyncio.sleep(self._trial_s)
        await self._act(rollout, "promote")
        await self._wait(
            new, "be stable", lambda s: (s["stable"] or {}).get("id") == new and (s["rollout"] is not None) == is_baking
        )
        await asyncio.sleep(self._trial_s)
        commanded_at = time.monotonic()
        await self._act(rollout, "rollback")
        await self._wait(new, "be gone", lambda s: (s["stable"] or {}).get("id") == old and s["rollout"] is None)
        await asyncio.sleep(self._trial_s)
        return max(0.0, load.tally.last_begun_at[new] - commanded_at)

    async def _try_next(self) -> tuple[str, dict[str, Any]]:
        """Register the next checkpoint and wait until it is on trial; its id and its rollout."""
        path = await self._publish()
        await self.call("POST", "/operator/v1/checkpoints", {"path": str(path)})
        status = await self._wait(path.name, "be on trial", lambda s: (s["canary"] or {}).get("id") == path.name)
        return path.name, dict(status["rollout"])

    async def _act(self, rollout: dict[str, Any], action: str) -> None:
        await self.call("POST", f"/operator/v1/rollouts/{rollout['id']}:{action}", {"note": REASON})

    async def _publish(self) -> Path:
        path = await asyncio.to_thread(make_checkpoint, self._adapters, self._root, self._number, self.serving)
        self._number += 1
        return path

    async def _wait(self, checkpoint: str, what: str, is_true: Any) -> dict[str, Any]:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            status = await self.call("GET", "/operator/v1/status")
            if is_true(status):
                return status
            if time.monotonic() > deadline:
                raise SwapFailed(f"{checkpoint} does not come to {what}: {json.dumps(status)[:2000]}")
            await asyncio.sleep(POLL_S)

    async def _wait_for_unload(self, checkpoint: str | None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            rows = (await self.call("GET", "/operator/v1/checkpoints"))["data"]
            if any(row["id"] == checkpoint and row["status"] == "retired" for row in rows):
                return
            if time.monotonic() > deadline:
                raise SwapFailed(f"{checkpoint} is not unloaded")
            await asyncio.sleep(POLL_S)

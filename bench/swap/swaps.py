"""Hot swaps by the road that every checkpoint takes: registered, loaded, proven, tried, promoted, the old one unloaded.

Only the operators' HTTP is used. Each checkpoint is a copy of one of the trained adapters under an id of its own.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.swap.load import Load
from bench.swap.operating import PATIENCE_S, POLL_S, Operator, OperatorFailed, publish_copy
from bench.swap.sentences import SENTENCES

REASON = "bench: the next swap"


@dataclass(frozen=True)
class Timing:
    """One swap, in seconds: registered -> serving; promoted -> the old checkpoint unloaded."""

    swap_s: float
    retire_s: float


class Swaps:
    """The operator. `serving` is the stable checkpoint's id."""

    def __init__(self, operator: Operator, adapters: Path, root: Path, trial_s: float) -> None:
        self._operator, self._trial_s = operator, trial_s
        self._adapters, self._root = adapters, root
        self._number = 0
        self.serving: str | None = None

    async def start(self) -> None:
        """Register the first checkpoint and wait until it serves."""
        self.serving = await self._operator.start_first(await self._publish())

    async def swap(self, load: Load) -> Timing:
        """Put the next checkpoint in the place of the one that serves. Raises OperatorFailed."""
        old, registered_at = self.serving, time.time()
        new, rollout = await self._try_next()
        loaded_at = next(event["at"] for event in rollout["events"] if event["reason"] == "Loaded")
        load.pinned = new  # serves until the next swap but one
        await asyncio.sleep(self._trial_s)
        promoted_at = time.time()
        await self._act(rollout, "promote")
        await self._operator.wait_for_status(
            f"{new} is stable", lambda s: (s["stable"] or {}).get("id") == new and s["rollout"] is None
        )
        await self._wait_for_unload(old)
        self.serving = new
        return Timing(loaded_at - registered_at, time.time() - promoted_at)

    async def roll_back(self, load: Load, is_baking: bool) -> float:
        """Promote the next checkpoint and roll it back, from Baking or from Healthy. Raises OperatorFailed.

        Returns the seconds from the command to the beginning of the last request that the checkpoint still answered.
        """
        old, load.pinned = self.serving, None
        new, rollout = await self._try_next()
        await asyncio.sleep(self._trial_s)
        await self._act(rollout, "promote")
        await self._operator.wait_for_status(
            f"{new} is stable",
            lambda s: (s["stable"] or {}).get("id") == new and (s["rollout"] is not None) == is_baking,
        )
        await asyncio.sleep(self._trial_s)
        commanded_at = time.monotonic()
        await self._act(rollout, "rollback")
        await self._operator.wait_for_status(
            f"{new} is gone", lambda s: (s["stable"] or {}).get("id") == old and s["rollout"] is None
        )
        await asyncio.sleep(self._trial_s)
        return max(0.0, load.tally.last_begun_at.get(new, 0.0) - commanded_at)

    async def _try_next(self) -> tuple[str, dict[str, Any]]:
        """Register the next checkpoint and wait until it is on trial; its id and its rollout."""
        path = await self._publish()
        await self._operator.register(path)
        status = await self._operator.wait_for_status(
            f"{path.name} is on trial", lambda s: (s["canary"] or {}).get("id") == path.name
        )
        return path.name, dict(status["rollout"])

    async def _act(self, rollout: dict[str, Any], action: str) -> None:
        await self._operator.act(rollout["id"], action, {"note": REASON})

    async def _publish(self) -> Path:
        source = self._adapters / str(self._number % len(SENTENCES))
        path = await asyncio.to_thread(publish_copy, source, self._root, self._number, self.serving)
        self._number += 1
        return path

    async def _wait_for_unload(self, checkpoint: str | None) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            rows = (await self._operator.call("GET", "/operator/v1/checkpoints"))["data"]
            if any(row["id"] == checkpoint and row["status"] == "retired" for row in rows):
                return
            if time.monotonic() > deadline:
                raise OperatorFailed(f"{checkpoint} is not unloaded")
            await asyncio.sleep(POLL_S)

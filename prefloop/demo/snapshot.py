"""What the gateway, the trainer and the people of a demo said last, and how it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from prefloop.demo.report import count_rollouts, find_first_promoted
from prefloop.rounds import BUSY


@dataclass
class Snapshot:
    """What the gateway, the trainer and the people said last; an answer that fails keeps the one before."""

    gateway: dict[str, Any]
    trainer: dict[str, Any]
    rollouts: list[dict[str, Any]]
    people: dict[str, Any]

    @property
    def promotions(self) -> int:
        """Checkpoints that were promoted."""
        return count_rollouts(self.rollouts).promotions

    @property
    def first_promoted(self) -> str | None:
        """The first checkpoint that was promoted."""
        return find_first_promoted(self.rollouts)

    @property
    def has_begun_a_round(self) -> bool:
        """Whether a round trains now, or has ended."""
        return (self.trainer.get("round") or {}).get("state") in BUSY or bool(self.trainer.get("rounds"))

    @property
    def active_rollout(self) -> dict[str, Any] | None:
        """The rollout that is on."""
        return self.gateway.get("rollout")

    @property
    def finished_aa(self) -> int:
        """A/A rollouts that ended."""
        return sum(1 for view in self.rollouts if view["aa"] and view["finished_at"] is not None)


async def get_json(client: httpx.AsyncClient, url: str) -> Any:
    """None when the process does not answer now: it may be restarting."""
    try:
        response = await client.get(url)
        return response.json() if response.status_code == 200 else None
    except (httpx.TransportError, ValueError):
        return None

"""Weighs a rollout: reads its duels and first requests, and makes evidence and guardrails of them. Decides nothing."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection

from feedback.database import Writer
from gateway import tables
from gateway.rollout.duels import read_duels
from gateway.rollout.evidence import Duel, Evidence, weigh_duels
from gateway.rollout.guardrails import Guardrails, judge_guardrails
from gateway.rollout.observations import Observation
from gateway.rollout.plan import read_settings
from gateway.rollout.summary import build_view
from gateway.rollout.view import RolloutView
from gateway.tables import RolloutRow

_MOST_VIEWS = 200


@dataclass(frozen=True)
class Assessment:
    """A rollout as weighed. last_choice_at: when the newest choice was made."""

    evidence: Evidence
    guardrails: Guardrails
    last_choice_at: float


def weigh(
    row: RolloutRow, duels: list[Duel], observed: list[Observation], now: float
) -> tuple[Evidence, Guardrails, float]:
    """Evidence, guardrails and the time of the newest choice."""
    settings = read_settings(row)
    evidence = weigh_duels(
        duels, cap=settings.cap, window_s=settings.window_s, now=now, alpha=settings.alpha, delta=settings.delta,
        max_users=settings.max_users,
    )  # fmt: skip
    guardrails = judge_guardrails(
        observed, duels, salt=bytes.fromhex(row.salt), ceilings=settings.ceilings.model_dump(), alpha=settings.alpha,
        max_ratio=settings.max_ratio,
    )  # fmt: skip
    return evidence, guardrails, max((duel.chosen_at for duel in duels if duel.chosen_at is not None), default=0.0)


class Assessor:
    """Assesses rollouts. preset: the settings' name, as shown. `clock` in epoch seconds."""

    def __init__(self, writer: Writer, preset: str, clock: Callable[[], float]) -> None:
        self._writer, self._preset, self._clock = writer, preset, clock
        self._views: dict[str, RolloutView] = {}  # of finished rollouts

    async def assess(self, row: RolloutRow, now: float) -> Assessment:
        """Weigh a rollout as of `now`, by what the tables hold at this moment."""
        duels, observed = await self._writer.arun(lambda conn: _read(conn, row.id))
        return Assessment(*await asyncio.to_thread(weigh, row, duels, observed, now))

    async def show(self, row: RolloutRow) -> RolloutView:
        """What operators see. A finished rollout is weighed once."""
        if row.id in self._views:
            return self._views[row.id]
        found = await self.assess(row, row.finished_at or self._clock())
        events = await self._writer.arun(lambda conn: tables.list_events(conn, row.id))
        view = build_view(row, found.evidence, found.guardrails, events, read_settings(row), self._preset)
        if row.phase in tables.FINISHED:
            self._views[row.id] = view
            if len(self._views) > _MOST_VIEWS:
                self._views.pop(next(iter(self._views)))
        return view


def _read(conn: Connection, rollout: str) -> tuple[list[Duel], list[Observation]]:
    return read_duels(conn, rollout), tables.load_observations(conn, rollout)

"""Weighs a rollout: reads its inputs, and makes findings of them.

All of them every time, and with thousands of users that is seconds of a core that serves. So an assessment knows what it
cost, and who looks periodically waits while it is recent. Promises 5% of a core for the controller's looks, and as much
for the operators'. Decides nothing.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from feedback.database import Writer
from feedback.outages import is_outage, log_failure
from gateway.rollout.desired_state import convert_rules, read_rules
from gateway.rollout.inputs import read_inputs
from gateway.rollout.pure.findings import Findings, Inputs, weigh, weigh_series
from gateway.rollout.view import RolloutView, build_view
from gateway.sections.rollout import RolloutSection
from gateway.tables.rollouts import FINISHED, list_events
from gateway.tables.rows import EventRow, RolloutRow

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_MOST_OF_A_CORE = 0.05
_MOST_VIEWS = 200


@dataclass(frozen=True)
class Assessment:
    """A rollout as weighed by its inputs, which took cpu_s of CPU time."""

    row: RolloutRow
    inputs: Inputs
    findings: Findings
    cpu_s: float

    def is_recent(self, row: RolloutRow, now: float) -> bool:
        """Whether it is of this very row, and to weigh it again already would take more than 5% of a core."""
        return self.row == row and 0 <= now - self.inputs.now < self.cpu_s / _MOST_OF_A_CORE


@dataclass(frozen=True)
class CurrentRollout:
    """The rollout that is on as this gateway last saw it; only the leader weighs it, while it is on trial or baking."""

    row: RolloutRow
    assessment: Assessment | None = None

    def update(self, row: RolloutRow | None, *, leads: bool) -> "CurrentRollout | None":
        """What was weighed is kept while the rollout is the same one and this gateway leads."""
        if row is None or row.id != self.row.id or not leads:
            return None if row is None else CurrentRollout(row)
        return replace(self, row=row)


class Assessor:
    """Assesses rollouts. preset: the settings' name, as shown. `clock` in epoch seconds, `cpu_clock` of one thread."""

    def __init__(
        self,
        writer: Writer,
        preset: str,
        clock: Callable[[], float],
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._writer, self._preset, self._clock, self._cpu_clock = writer, preset, clock, cpu_clock
        self._newest: Assessment | None = None
        self._views: dict[tuple[str, int], RolloutView] = {}  # of finished rollouts, by generation
        self._events: tuple[tuple[str, int], list[EventRow]] = ("", 0), []  # of the row shown last
        self._lock = asyncio.Lock()

    async def assess(self, row: RolloutRow, now: float) -> Assessment:
        """Weigh a rollout as of `now`, by what the tables hold at this moment."""
        rules = read_rules(row)
        inputs, read_s = await self._writer.aread(lambda conn: self._measure(read_inputs, conn, row, rules, now))
        findings, weigh_s = await asyncio.to_thread(self._measure, weigh, rules, inputs)
        self._newest = Assessment(row, inputs, findings, cpu_s=read_s + weigh_s)
        return self._newest

    def _measure(self, fn: Callable[..., _T], *args: Any) -> tuple[_T, float]:
        began = self._cpu_clock()
        return fn(*args), self._cpu_clock() - began

    async def show(self, row: RolloutRow) -> RolloutView:
        """What operators see, weighed anew unless it was lately. A finished rollout is weighed once.

        One that cannot be weighed is shown without evidence, and with what is wrong.
        """
        if (row.id, row.generation) in self._views:
            return self._views[row.id, row.generation]
        problem = ""
        try:
            rules = read_rules(row)
            async with self._lock:  # of many who look at once, one weighs
                now = row.finished_at or self._clock()
                found = self._newest
                if found is None or not found.is_recent(row, now):
                    found = await self.assess(row, now)
            findings, series = found.findings, await asyncio.to_thread(weigh_series, rules, found.inputs)
        except Exception as error:
            if is_outage(error):
                raise
            log_failure(_log, f"rollout {row.id} cannot be weighed", error)
            problem, rules = describe_problem(error), convert_rules(RolloutSection())
            findings, series = weigh(rules, Inputs(row.created_at, [], [])), ()
        if self._events[0] != (row.id, row.generation):  # none is added without a new generation
            events = await self._writer.aread(lambda conn: list_events(conn, row.id))
            self._events = (row.id, row.generation), events
        view = build_view(row, findings, series, self._events[1], rules, self._preset, problem)
        if row.phase in FINISHED and not problem:
            self._views[row.id, row.generation] = view
            if len(self._views) > _MOST_VIEWS:
                self._views.pop(next(iter(self._views)))
        return view

    def forget(self, rollout: str) -> None:
        """Read a rollout's events anew when it is shown."""
        self._views = {key: view for key, view in self._views.items() if key[0] != rollout}
        self._events = ("", 0), []


def describe_problem(error: Exception) -> str:
    """One line of what went wrong."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


def digest_code() -> str:
    """SHA-256 over the pure files, which decide, so that a decision names the code that made it."""
    digest = hashlib.sha256()
    for path in sorted((Path(__file__).parent / "pure").glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()

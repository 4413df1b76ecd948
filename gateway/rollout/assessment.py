"""Weighs a rollout: reads its voters and first requests, and makes evidence and guardrails of them.

All of them every time, and with thousands of users that is seconds of a core that serves. So an assessment knows what it
cost, and who looks periodically waits while it is recent. Promises 5% of a core for the controller's looks, and as much
for the operators'. Decides nothing.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection

from feedback.database import Writer
from feedback.duels import DuelRow, load_duels
from feedback.outages import is_outage, log_failure
from gateway.rollout.desired_state import convert_rules, read_rules
from gateway.rollout.pure.evidence import Evidence, draw_series, weigh_voters
from gateway.rollout.pure.guardrails import Guardrails, judge_guardrails
from gateway.rollout.pure.rules import Rules
from gateway.rollout.pure.users import Duel, Voter, sum_up
from gateway.rollout.view import RolloutView, build_view
from gateway.settings import RolloutSection
from gateway.tables.observations import load_observations
from gateway.tables.rollouts import FINISHED, list_events
from gateway.tables.rows import EventRow, Observation, RolloutRow

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_MOST_OF_A_CORE = 0.05
_MOST_VIEWS = 200


@dataclass(frozen=True)
class Assessment:
    """A rollout as weighed at `at`, which took cpu_s of CPU time. last_choice_at: when the newest choice was made."""

    row: RolloutRow
    voters: Sequence[Voter]
    evidence: Evidence
    guardrails: Guardrails
    last_choice_at: float
    at: float
    cpu_s: float

    def is_recent(self, row: RolloutRow, now: float) -> bool:
        """Whether it is of this very row, and to weigh it again already would take more than 5% of a core."""
        return self.row == row and 0 <= now - self.at < self.cpu_s / _MOST_OF_A_CORE


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


def weigh(
    rules: Rules, voters: list[Voter], observed: list[Observation], now: float
) -> tuple[Evidence, Guardrails, float]:
    """Evidence, guardrails and the time of the newest choice."""
    evidence = weigh_voters(
        voters, cap=rules.cap, now=now, alpha=rules.alpha, delta=rules.delta, max_users=rules.max_users
    )
    guardrails = judge_guardrails(
        observed, voters, ceilings=rules.ceilings, alpha=rules.alpha,
        max_ratio=rules.max_ratio, accept_blind=rules.accept_blind,
    )  # fmt: skip
    return evidence, guardrails, max((voter.last_chosen_at for voter in voters), default=0.0)


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
        self._views: dict[str, RolloutView] = {}  # of finished rollouts
        self._events: tuple[tuple[str, int], list[EventRow]] = ("", 0), []  # of the row shown last
        self._lock = asyncio.Lock()

    async def assess(self, row: RolloutRow, now: float) -> Assessment:
        """Weigh a rollout as of `now`, by what the tables hold at this moment."""
        rules = read_rules(row)
        (voters, observed), read_s = await self._writer.aread(lambda conn: self._measure(_read, conn, row, rules))
        weighed, weigh_s = await asyncio.to_thread(self._measure, weigh, rules, voters, observed, now)
        self._newest = Assessment(row, voters, *weighed, at=now, cpu_s=read_s + weigh_s)
        return self._newest

    def _measure(self, fn: Callable[..., _T], *args: Any) -> tuple[_T, float]:
        began = self._cpu_clock()
        return fn(*args), self._cpu_clock() - began

    async def show(self, row: RolloutRow) -> RolloutView:
        """What operators see, weighed anew unless it was lately. A finished rollout is weighed once.

        One that cannot be weighed is shown without evidence, and with what is wrong.
        """
        if row.id in self._views:
            return self._views[row.id]
        problem = ""
        try:
            rules = read_rules(row)
            async with self._lock:  # of many who look at once, one weighs
                now = row.finished_at or self._clock()
                found = self._newest
                if found is None or not found.is_recent(row, now):
                    found = await self.assess(row, now)
            evidence, guardrails = found.evidence, found.guardrails
            series = await asyncio.to_thread(
                draw_series, found.voters, cap=rules.cap, now=found.at, alpha=rules.alpha, delta=rules.delta,
                max_users=rules.max_users,
            )  # fmt: skip
        except Exception as error:
            if is_outage(error):
                raise
            log_failure(_log, f"rollout {row.id} cannot be weighed", error)
            problem, rules = describe_problem(error), convert_rules(RolloutSection())
            evidence, guardrails, _ = weigh(rules, [], [], row.created_at)
            series = ()
        if self._events[0] != (row.id, row.generation):  # none is added without a new generation
            events = await self._writer.aread(lambda conn: list_events(conn, row.id))
            self._events = (row.id, row.generation), events
        view = build_view(row, evidence, guardrails, series, self._events[1], rules, self._preset, problem)
        if row.phase in FINISHED and not problem:
            self._views[row.id] = view
            if len(self._views) > _MOST_VIEWS:
                self._views.pop(next(iter(self._views)))
        return view


def describe_problem(error: Exception) -> str:
    """One line of what went wrong."""
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


def digest_code() -> str:
    """SHA-256 over the files that decide, so that a decision names the code that made it."""
    digest = hashlib.sha256()
    for name in ("users.py", "evidence.py", "rates.py", "first_requests.py", "guardrails.py", "machine.py", "rules.py"):
        digest.update((Path(__file__).parent / "pure" / name).read_bytes())
    return digest.hexdigest()


def _read(conn: Connection, row: RolloutRow, rules: Rules) -> tuple[list[Voter], list[Observation]]:
    voters = read_voters(conn, row.id, cap=rules.cap, window_s=rules.window_s, unit=rules.evidence_unit)
    return voters, load_observations(conn, row.id)


def read_voters(conn: Connection, rollout: str, *, cap: int, window_s: float, unit: str = "user") -> list[Voter]:
    """The known users who were asked, whether they have chosen or not; by comparison, each of theirs is a voter alone."""
    duels = (
        _convert(row, row.comparison_id if unit == "comparison" else row.user)
        for row in load_duels(conn, rollout)
        if row.user
    )
    return [sum_up(list(own), cap=cap, window_s=window_s) for _, own in groupby(duels, attrgetter("user"))]


def _convert(row: DuelRow, voter: str) -> Duel:
    # A harm flag is of the pair: it is held against the candidate that was not preferred, or against both.
    return Duel(
        user=voter,
        asked_at=row.asked_at,
        chosen_at=row.chosen_at,
        outcome=row.outcome,
        both_bad=row.both_bad,
        harmful_canary=row.harmful and row.outcome <= 0,
        harmful_stable=row.harmful and row.outcome >= 0,
        canary_first=row.canary_first,
        failed=row.failed,
    )

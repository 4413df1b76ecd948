"""What operators ask of what people said: how it goes, whether people choose by place or time, and what was shown last."""

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from feedback.choices import choices, comparisons, is_remembered
from feedback.events import Candidate, Comparison
from feedback.quality.activity import Activity, DayCount, count_days, load_said, summarise_activity
from feedback.quality.agreement import load_judgements, measure_agreement
from feedback.quality.bias import (
    Bias,
    Interval,
    Vote,
    list_judging,
    load_votes,
    measure_bias,
    measure_bias_by_share,
)
from gateway.access.keys import Identity
from gateway.api.routes import OperatorRoutes
from gateway.serving.context import Context

_NUM_VOTES = 20_000
_NUM_SAID = 5_000
_NUM_JUDGEMENTS = 1_000  # whose words are read
_NUM_DAYS = 14
_KEPT_S = 3.0
_MAX_LISTED = 100
_MAX_TEXT = 2_000  # characters of a prompt or an answer
T = TypeVar("T")


class ShareBias(msgspec.Struct, frozen=True):
    """Each user counts once. `finish_effect`: how much likelier the answer shown first is chosen when it was complete first."""

    is_biased: bool
    shown_first: Interval
    finished_first: Interval
    finish_effect: Interval


class BiasView(ShareBias, frozen=True):
    """Of comparisons whose answers were picked at random, which alone judge; `by_share` has each way of picking."""

    by_share: dict[str, ShareBias]


class FeedbackView(msgspec.Struct, frozen=True):
    """How it goes. agreement: of questions where two users saw the same two answers, the share that preferred the same."""

    recent: Activity
    days: list[DayCount]
    agreement: Interval


class CandidateView(msgspec.Struct, frozen=True):
    """One of the two answers; long ones are cut."""

    text: str
    checkpoint: str
    arm: str
    finish_reason: str


class ComparisonView(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison as it was shown, and what was said of it: preferred is None while nothing was. prompt: the last message."""

    id: str
    app: str
    user: str
    asked: str
    share: str
    created_at: float
    prompt: str
    first: CandidateView
    second: CandidateView
    preferred: str | None
    harmful: bool
    seconds_to_decide: float | None


class ComparisonList(msgspec.Struct, frozen=True):
    """The newest first."""

    data: list[ComparisonView]


class NewestComparisons(msgspec.Struct, frozen=True):
    """How many of the newest, at most 100."""

    limit: int = 20


def add_feedback_route(routes: OperatorRoutes, context: Context) -> None:
    """GET /operator/v1/feedback, /operator/v1/feedback/bias and /operator/v1/feedback/comparisons."""
    policy = context.settings.policy

    activity = _Remembered(context, _KEPT_S)

    @routes.add("GET", "/feedback", "Show what people said lately, and whether they agree", {200: FeedbackView})
    async def show_feedback(_: Identity) -> FeedbackView:
        return await activity.look()

    @routes.add(
        "GET", "/feedback/bias", "Show whether people choose by place, or by which answer was there first",
        {200: BiasView},
    )  # fmt: skip
    async def show_bias(_: Identity) -> BiasView:
        return await _read(context, lambda conn: _weigh(load_votes(conn, _NUM_VOTES)))

    @routes.add(
        "GET", "/feedback/comparisons", "List the newest comparisons, with what was said of them",
        {200: ComparisonList}, query=NewestComparisons,
    )  # fmt: skip
    async def list_comparisons(_: Identity, query: NewestComparisons) -> ComparisonList:
        limit = max(1, min(query.limit, _MAX_LISTED))
        return ComparisonList(await _read(context, lambda conn: _load_comparisons(conn, policy, limit)))


class _Remembered:
    """The view, read anew at most every `kept_s` however many pages look: it reads thousands of rows."""

    def __init__(self, context: Context, kept_s: float) -> None:
        self._context, self._kept_s = context, kept_s
        self._reading = asyncio.Lock()
        self._view: FeedbackView | None = None
        self._read_at = 0.0

    async def look(self) -> FeedbackView:
        async with self._reading:
            if self._view is None or time.monotonic() - self._read_at >= self._kept_s:
                self._view = await _read(self._context, self._load)
                self._read_at = time.monotonic()
            return self._view

    def _load(self, conn: sa.Connection) -> FeedbackView:
        policy = self._context.settings.policy
        return FeedbackView(
            summarise_activity(load_said(conn, policy, _NUM_SAID)),
            count_days(conn, policy, time.time(), _NUM_DAYS),
            measure_agreement(load_judgements(conn, policy, _NUM_JUDGEMENTS)),
        )


async def _read(context: Context, read: Callable[[sa.Connection], T]) -> T:
    """Read in a thread: it may be long."""

    def run() -> T:
        with context.database.connect() as conn:
            return read(conn)

    return await asyncio.to_thread(run)


def _weigh(votes: list[Vote]) -> BiasView:
    by_share: dict[str, ShareBias] = {
        share: ShareBias(*_list_fields(found)) for share, found in measure_bias_by_share(votes).items()
    }
    return BiasView(*_list_fields(measure_bias(list_judging(votes))), by_share)


def _list_fields(bias: Bias) -> tuple[bool, Interval, Interval, Interval]:
    return bias.is_biased, bias.shown_first, bias.finished_first, bias.finish_effect


def _load_comparisons(conn: sa.Connection, policy: str, limit: int) -> list[ComparisonView]:
    query = (
        sa.select(comparisons.c.body, choices.c.preferred, choices.c.harmful, choices.c.chosen_at)
        .select_from(comparisons.outerjoin(choices, choices.c.comparison_id == comparisons.c.id))
        .where(comparisons.c.policy == policy, is_remembered)
        .order_by(comparisons.c.created_at.desc())
        .limit(limit)
    )
    return [
        _show_comparison(
            msgspec.json.decode(row.body, type=Comparison), row.preferred, bool(row.harmful), row.chosen_at
        )
        for row in conn.execute(query)
    ]


def _show_comparison(
    shown: Comparison, preferred: str | None, harmful: bool, chosen_at: float | None
) -> ComparisonView:
    return ComparisonView(
        id=shown.id,
        app=shown.app,
        user=shown.user[:12],
        asked=shown.asked,
        share=shown.share,
        created_at=shown.created_at,
        prompt=_read_text(shown.messages[-1].get("content") if shown.messages else "")[:_MAX_TEXT],
        first=_show_candidate(shown.first),
        second=_show_candidate(shown.second),
        preferred=preferred,
        harmful=harmful,
        seconds_to_decide=None if chosen_at is None else max(0.0, chosen_at - shown.created_at),
    )


def _show_candidate(candidate: Candidate) -> CandidateView:
    return CandidateView(candidate.text[:_MAX_TEXT], candidate.checkpoint, candidate.arm, candidate.finish_reason)


def _read_text(content: Any) -> str:
    """The words of a message's content: a text, or parts of which some are text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part["text"]) for part in parts if isinstance(part, dict) and "text" in part)

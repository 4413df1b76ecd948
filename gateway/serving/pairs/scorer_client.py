"""Asks the trainer's scorer which two of some candidates to show, and remembers when it is better not asked.

Never raises for what the scorer does: away, slow, busy or unreadable, it is counted and the caller goes on without it. After a
failure comparisons are random for a second, and twice as long after each further one, at most half a minute.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Literal

import msgspec

from feedback.events import Share
from feedback.scoring import ScoreAnswer, ScoreRequest
from gateway.errors import EngineInterrupted, EngineUnavailable
from gateway.http.upstream import Upstream
from gateway.serving.metrics import Metrics

logger = logging.getLogger("gateway.scorer")

FailureReason = Literal["away", "slow", "busy", "not_ready", "refused", "failed", "garbage", "candidates"]
_SENTENCES: dict[FailureReason, str] = {
    "away": "the scorer is away",
    "slow": "the scorer does not answer within asking.budget_ms",
    "busy": "the scorer is busy",
    "not_ready": "the scorer has no reward model yet",
    "refused": "the scorer refuses what it is asked",
    "failed": "the scorer fails",
    "garbage": "the scorer answers what cannot be read",
    "candidates": "candidates fail, or are not complete within asking.budget_ms",
}
_OF_ONE_REQUEST = ("refused", "candidates")  # they say nothing of the next one
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Refusal(msgspec.Struct):
    error: _Error = msgspec.field(default_factory=_Error)


_answers = msgspec.json.Decoder(ScoreAnswer)
_refusals = msgspec.json.Decoder(_Refusal)


class ScorerClient:
    """The scorer at `url`, "" for none. `num_by_share` counts comparisons that were shown, and are no duels."""

    def __init__(
        self, url: str, upstream: Upstream, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.url = url.rstrip("/")
        self._upstream, self._metrics, self._clock = upstream, metrics, clock
        self._retry_at = 0.0
        self._pause_s = _FIRST_PAUSE_S
        self._last_failure: FailureReason | None = None
        self.num_by_share: Counter[str] = Counter()
        self.num_failures: Counter[str] = Counter()
        self.version: int | None = None  # of the reward model that picked last

    @property
    def is_usable(self) -> bool:
        """Whether it is worth to draw candidates for it now."""
        return bool(self.url) and self._clock() >= self._retry_at

    @property
    def problem(self) -> str:
        """Why comparisons are random, whatever the settings say; "" if they are not."""
        if not self.url:
            return "asks are random because no scorer is configured (gateway.scorer_url)"
        return f"asks are random because {_SENTENCES[self._last_failure]}" if self._last_failure else ""

    async def pick(self, request: ScoreRequest, share: Share, budget_s: float) -> tuple[int, int] | None:
        """The places of the two to show; None, and counted, if they are not known within the budget."""
        body = msgspec.json.encode(msgspec.structs.replace(request, budget_ms=max(1.0, 1000 * budget_s)))
        began = self._clock()
        try:
            async with asyncio.timeout(budget_s):
                answer = await self._upstream.post(self.url, b"/score", body, is_stream=False)
        except TimeoutError:
            self.record_failure("slow")
            return None
        except (EngineUnavailable, EngineInterrupted) as error:
            self.record_failure("away", str(error))
            return None
        if answer.status != 200:
            self.record_failure(*_read_refusal(answer.status, answer.body))
            return None
        try:
            scored = _answers.decode(answer.body)
        except (ValueError, RecursionError) as error:
            self.record_failure("garbage", str(error))
            return None
        two = scored.telling if share == "telling" else scored.informative
        if two[0] == two[1] or not all(0 <= place < len(request.candidates) for place in two):
            self.record_failure("garbage", f"it picks {two} of {len(request.candidates)}")
            return None
        self._metrics.scorer_seconds.observe(self._clock() - began)
        self._retry_at, self._pause_s, self._last_failure = 0.0, _FIRST_PAUSE_S, None
        self.version = scored.version
        return two

    def record_failure(self, reason: FailureReason, detail: str = "") -> None:
        """A comparison is random after all."""
        self.num_failures[reason] += 1
        self._metrics.scorer_failures.labels(reason).inc()
        if reason in _OF_ONE_REQUEST:
            logger.info("a comparison is random: %s %s", _SENTENCES[reason], detail)
            return
        if reason != self._last_failure:
            logger.warning("asks are random because %s %s", _SENTENCES[reason], detail)
        self._last_failure = reason
        self._retry_at = self._clock() + self._pause_s
        if reason != "busy":  # it does well, for others
            self._pause_s = min(_LONGEST_PAUSE_S, 2 * self._pause_s)


def _read_refusal(status: int, body: bytes) -> tuple[FailureReason, str]:
    try:
        error = _refusals.decode(body).error
    except (ValueError, RecursionError):
        error = _Error()
    match error.code:
        case "busy" | "late":
            return "busy", ""
        case "not_ready":
            return "not_ready", error.message
    return ("refused" if 400 <= status < 500 else "failed"), f"status {status}: {error.message}"

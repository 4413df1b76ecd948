"""Draws several candidates, has the scorer pick two of them, and falls back to a random pair where it cannot.

The random pair is the first two that were asked for and succeeded, whichever was complete first: what is short is not
likelier to be shown. All that is drawn is booked and paid for, as with OpenAI's `n`; what is not shown is not stored. Nothing
here holds an answer beyond its first two candidates for longer than `asking.budget_ms`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from feedback.scoring import ScoredCandidate, ScoreRequest
from gateway.errors import EngineInterrupted, UnreadableAnswer
from gateway.http.connection import EngineAnswer
from gateway.http.sse import EventSplitter, event_data
from gateway.serving.engine_answers import read_chunk
from gateway.serving.exchange import Exchange
from gateway.serving.outcome import Outcome
from gateway.serving.pairs.asking import Ask, Side
from gateway.serving.pairs.candidates import CandidateDraft
from gateway.serving.pairs.drawing import Drawing, Drawn, close_late, find_outcome, read_drawn
from gateway.serving.pairs.interleave import CandidateStream
from gateway.serving.pairs.pair_request import PairRequest
from gateway.serving.pairs.shares import fall_back

T = TypeVar("T")


@dataclass(frozen=True)
class PickedAnswers:
    """Whole answers: the two to show, or fewer; all that were drawn, those among them; and the ask as it turned out."""

    ask: Ask
    shown: list[Drawn]
    drawn: list[Drawn]


@dataclass(frozen=True)
class PickedStreams:
    """Complete streams: the two to show, or fewer; the other candidates; and what came of those that are no stream."""

    ask: Ask
    shown: list[CandidateStream]
    others: list[CandidateStream]
    lost: list[tuple[CandidateDraft, EngineAnswer | BaseException]]


async def pick_answers(exchange: Exchange, ask: Ask, said: PairRequest, sides: Sequence[Side]) -> PickedAnswers:
    """Draw whole answers and pick two."""
    drafts = [CandidateDraft(side, index) for index, side in enumerate(sides)]
    drawing = Drawing(exchange, said, drafts)
    timer = _Timer(exchange)
    tasks = [asyncio.create_task(drawing.fetch(draft)) for draft in drafts]
    try:
        answers = await _wait_within(tasks, timer, lambda answer: answer.status == 200)
    finally:
        _cancel(tasks)
    drawn = [read_drawn(exchange, said, draft, answer) for draft, answer in zip(drafts, answers, strict=True)]
    good = [each for each in drawn if each.completion is not None]
    is_whole = len(good) == len(drafts)
    places, ask = await _pick(exchange, ask, said, [each.draft for each in good], timer, is_whole=is_whole)
    return PickedAnswers(ask, [good[place] for place in places], drawn)


async def pick_streams(exchange: Exchange, ask: Ask, said: PairRequest, sides: Sequence[Side]) -> PickedStreams:
    """Draw streams, hold them until they are complete, and pick two, which can then be read as if they came now."""
    drafts = [CandidateDraft(side, index) for index, side in enumerate(sides)]
    drawing = Drawing(exchange, said, drafts)
    timer = _Timer(exchange)
    tasks = [asyncio.create_task(_read_whole(drawing, draft)) for draft in drafts]
    try:
        results = await _wait_within(tasks, timer, lambda result: isinstance(result, _Held) and not result.has_failed)
    finally:
        _cancel(tasks)
    held = [result for result in results if isinstance(result, _Held)]
    good = [each for each in held if not each.has_failed]
    is_whole = len(good) == len(drafts)
    places, ask = await _pick(exchange, ask, said, [each.copy for each in good], timer, is_whole=is_whole)
    shown = [good[place].stream for place in places]
    lost = [
        (draft, result)
        for draft, result in zip(drafts, results, strict=True)
        if isinstance(result, EngineAnswer | BaseException)
    ]
    others = []
    for each in held:
        if not any(each.stream is stream for stream in shown):
            each.stream.outcome.code = 502 if each.has_failed else 200
            each.stream.draft.completion_tokens = each.stream.outcome.num_tokens = each.copy.completion_tokens
            each.stream.draft.prompt_tokens = each.copy.prompt_tokens
            others.append(each.stream)
    return PickedStreams(ask, shown, others, lost)


def list_outcomes(picked: PickedStreams) -> list[Outcome]:
    """How the candidates ended that are not shown."""
    lost = [find_outcome(draft, answer) for draft, answer in picked.lost]
    return [*(stream.outcome for stream in picked.others), *lost]


# The budget


class _Timer:
    """What is left of the budget, which begins when the first two candidates are there."""

    def __init__(self, exchange: Exchange) -> None:
        self._budget_s = exchange.context.settings.gateway.asking.budget_ms / 1000
        self._ends_at = float("inf")

    def start(self) -> None:
        self._ends_at = time.monotonic() + self._budget_s

    @property
    def left_s(self) -> float:
        return max(0.0, self._ends_at - time.monotonic())


async def _wait_within(
    tasks: Sequence[asyncio.Task[T]], timer: _Timer, is_good: Callable[[T], bool]
) -> list[T | BaseException]:
    """Every task's result or error; CancelledError of those that came too late.

    Waits for all, but no longer than the timer allows once two are good and the first two have ended.
    """
    waiting = set(tasks)

    def list_ended(some: Sequence[asyncio.Task[T]]) -> list[asyncio.Task[T]]:
        return [task for task in some if task.done() and task.exception() is None and is_good(task.result())]

    while waiting and not (all(task.done() for task in tasks[:2]) and len(list_ended(tasks)) >= 2):
        _, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    timer.start()
    if waiting:
        _, waiting = await asyncio.wait(waiting, timeout=timer.left_s)
    for task in waiting:
        task.cancel()
    return await asyncio.gather(*tasks, return_exceptions=True)


def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        if not task.done():
            task.cancel()


# The choice


async def _pick(
    exchange: Exchange,
    ask: Ask,
    said: PairRequest,
    good: Sequence[CandidateDraft],
    timer: _Timer,
    *,
    is_whole: bool,
) -> tuple[list[int], Ask]:
    """Which of the candidates that succeeded, in the order of asking, are shown; and the ask as it turned out."""
    scorer = exchange.context.scorer
    distinct: dict[str, int] = {}
    for place, draft in enumerate(good):
        distinct.setdefault(draft.content, place)
    places = list(distinct.values())
    is_late = timer.left_s <= 0
    if len(places) >= 2 and is_whole and not is_late:
        request = _make_request(exchange, said, [good[place] for place in places])
        picked = await scorer.pick(request, ask.share, timer.left_s)
        if picked is not None:
            return [places[rank] for rank in picked], ask
    elif not is_whole or is_late:
        scorer.record_failure("candidates")
    return list(range(len(good)))[:2], fall_back(ask, exchange.context.settings.gateway.asking)


def _make_request(exchange: Exchange, said: PairRequest, drafts: Sequence[CandidateDraft]) -> ScoreRequest:
    prompts = [draft.read_prompt_token_ids() for draft in drafts]
    return ScoreRequest(
        messages=exchange.request.read_storable_messages() or [],
        candidates=[
            ScoredCandidate(
                text=draft.content,
                token_ids=draft.read_token_ids(),
                finish_reason=draft.finish_reason,
                reasoning=draft.reasoning,
                tool_calls=draft.list_tool_calls() or None,
            )
            for draft in drafts
        ],
        prompt_token_ids=prompts[0] if all(prompt == prompts[0] for prompt in prompts) else None,
        tools=said.tools,
        chat_template_kwargs=said.chat_template_kwargs,
        seed=drafts[0].side.seed,
    )


# Held streams


class HeldStream:
    """A stream that was read whole, and can be read once more; what broke it is raised where it broke."""

    def __init__(self, engine: str, reads: list[bytes], error: EngineInterrupted | None) -> None:
        self.engine = engine
        self._reads, self._error = reads, error

    async def chunks(self) -> AsyncIterator[bytes]:
        for data in self._reads:
            yield data
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """There is nothing to let go of."""


@dataclass(frozen=True)
class _Held:
    """A stream with what it says, read into a copy of its draft."""

    stream: CandidateStream
    copy: CandidateDraft
    has_failed: bool


async def _read_whole(drawing: Drawing, draft: CandidateDraft) -> _Held | EngineAnswer:
    opening = asyncio.ensure_future(drawing.open(draft))
    try:
        stream = await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.cancel()
        opening.add_done_callback(close_late)
        raise
    if isinstance(stream, EngineAnswer):
        return stream
    answer, reads, error = stream.answer, list[bytes](), None
    try:
        async for data in answer.chunks():
            drawing.exchange.context.deployment.note_progress(answer.engine, time.monotonic())
            reads.append(data)
    except EngineInterrupted as interrupted:
        error = interrupted
    finally:
        answer.close()
    stream.answer = HeldStream(answer.engine, reads, error)
    stream.completed_at = time.monotonic()
    copy = CandidateDraft(draft.side, draft.index)
    is_read = _read_reads(copy, reads)
    return _Held(stream, copy, has_failed=error is not None or not is_read or not copy.finish_reason)


def _read_reads(draft: CandidateDraft, reads: Sequence[bytes]) -> bool:
    """Read a whole stream into a draft; False if it cannot be read."""
    splitter = EventSplitter()
    try:
        for data in reads:
            for event in splitter.feed(data):
                payload = event_data(event)
                if payload and payload != b"[DONE]":
                    draft.add(read_chunk(payload))
    except (UnreadableAnswer, ValueError):
        return False
    return True

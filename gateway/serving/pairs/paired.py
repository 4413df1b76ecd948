"""Two answers to one request: both drawn at once, shown as choices[0] and choices[1] with a comparison to answer.

Identical answers collapse to one; if one failed, the other stands alone as index 0. Neither id, model nor fingerprint
tells the client which arm wrote what. Streams are interleaved in interleave.py.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import msgspec

from gateway.errors import ApiError, UnreadableAnswer
from gateway.http.connection import EngineAnswer
from gateway.serving.attempts import ask_engine, hide_refusal, status_for_client
from gateway.serving.body import add_fields
from gateway.serving.engine_answers import EnginePiece, read_completion
from gateway.serving.exchange import Exchange
from gateway.serving.metering import settle_tokens
from gateway.serving.outcome import CLIENT_GONE, Outcome, record_pair
from gateway.serving.pairs.asking import Ask, choose_sides
from gateway.serving.pairs.candidates import (
    CandidateDraft,
    Pair,
    count_unasked,
    draft_pair,
    merge_usage,
    offer_comparison,
    record_alone,
)
from gateway.serving.pairs.interleave import CandidateStream, interleave_streams
from gateway.serving.pairs.pair_request import read_pair_request

logger = logging.getLogger("gateway.pairs")

_rng = random.SystemRandom()
T = TypeVar("T")


async def answer_pair(exchange: Exchange, ask: Ask) -> None:
    """Answer twice. Raises ApiError if neither answer could be made."""
    if exchange.call.record is not None:
        exchange.call.record.is_paired = True
    sides = choose_sides(exchange.view, exchange.who, exchange.route, _rng)
    deployment, asks, user = exchange.context.deployment, exchange.context.asks, exchange.who.user
    asked_at = time.time()
    if user:
        asks.note_asked(user, asked_at)
    for side in sides:  # their requests begin in tasks of their own, a moment later
        deployment.hold(side.checkpoint)
    try:
        pair = draft_pair(sides, exchange.context.secrets.pepper, read_pair_request(exchange.body))
        await (_answer_streamed if exchange.request.is_stream else _answer_whole)(exchange, ask, pair)
    except asyncio.CancelledError:
        if not exchange.call.is_booked:
            gone = [Outcome(side.arm, CLIENT_GONE) for side in sides]
            record_pair(exchange, gone, is_duel=sides[0].arm != sides[1].arm)
        raise
    finally:
        if not exchange.is_asked:
            asks.take_back(user, asked_at)
        for side in sides:
            deployment.release(side.checkpoint)


async def _answer_whole(exchange: Exchange, ask: Ask, pair: Pair) -> None:
    answers = await asyncio.gather(*_ask_both(pair, partial(_fetch, exchange, pair)), return_exceptions=True)
    drawn: list[tuple[CandidateDraft, EnginePiece]] = []
    outcomes: list[Outcome] = []
    for draft, answer in zip(pair.drafts, answers, strict=True):
        completion = _read_answer(exchange, answer, pair, draft)
        outcomes.append(_find_outcome(draft, answer))
        if completion is not None:
            drawn.append((draft, completion))
    record_pair(exchange, outcomes, is_duel=pair.is_duel)
    if not drawn:
        _refuse(exchange, pair, answers)
        return
    body: dict[str, Any] = dict(drawn[0][1].fields)
    drafts = [draft for draft, _ in drawn]
    if len(drawn) == 2:
        engine = next(answer.engine for answer in answers if isinstance(answer, EngineAnswer))
        comparison = await offer_comparison(exchange, ask, pair, engine)
        if drafts[0].content == drafts[1].content:
            drawn = drawn[:1]
        if comparison is not None:
            body["comparison"] = comparison
    else:
        count_unasked(exchange, "failed")
    body["id"], body["created"] = pair.completion_id, pair.created
    body["model"] = exchange.route.alias
    body["choices"] = [{**(completion.choice or {}), "index": i} for i, (_, completion) in enumerate(drawn)]
    body["usage"] = usage = merge_usage(drafts)
    settle_tokens(exchange, usage["prompt_tokens"], usage["completion_tokens"])
    exchange.call.send(200, msgspec.json.encode(body))
    if not exchange.is_asked:
        record_alone(exchange, pair, drafts[0])


def _ask_both(pair: Pair, ask: Callable[[CandidateDraft], Coroutine[Any, Any, T]]) -> list[asyncio.Task[T]]:
    """Begin both requests, in the pair's order of asking; the tasks are in display order."""
    begun = {draft.index: asyncio.create_task(ask(draft)) for draft in pair.asked}
    return [begun[draft.index] for draft in pair.drafts]


async def _fetch(exchange: Exchange, pair: Pair, draft: CandidateDraft) -> EngineAnswer:
    answer = await _ask(exchange, pair, draft, {"seed": draft.side.seed}, is_stream=False)
    draft.seconds_to_finish = time.monotonic() - exchange.started
    return answer


def _read_answer(
    exchange: Exchange, answer: EngineAnswer | BaseException, pair: Pair, draft: CandidateDraft
) -> EnginePiece | None:
    """What was answered, as the client is to see it; None if it failed, or cannot be read."""
    if isinstance(answer, BaseException) or answer.status != 200:
        return None
    try:
        completion = read_completion(answer.body)
    except UnreadableAnswer as error:
        logger.warning("an answer of a pair cannot be read: %s", error, extra=exchange.call.log_fields)
        return None
    draft.add(completion)
    draft.is_ended = True
    return completion if pair.said.chooses_token_ids else completion.without_token_ids()


def _find_outcome(draft: CandidateDraft, answer: EngineAnswer | BaseException) -> Outcome:
    """How an answer that is no stream ended."""
    outcome = Outcome(draft.side.arm, num_tokens=draft.completion_tokens)
    if isinstance(answer, EngineAnswer):
        outcome.code = 502 if answer.status == 200 and not draft.is_ended else status_for_client(answer.status)
        outcome.read_bytes(answer.body)
    else:
        outcome.code = answer.status if isinstance(answer, ApiError) else 503
    return outcome


def _refuse(exchange: Exchange, pair: Pair, answers: Sequence[EngineAnswer | CandidateStream | BaseException]) -> None:
    """Neither answer could be made: the engine's own refusal if there is one. Else raises."""
    for draft, answer in zip(pair.drafts, answers, strict=True):
        if isinstance(answer, EngineAnswer) and answer.status != 200 and answer.status < 500:
            exchange.call.send(*hide_refusal(answer, draft.side.checkpoint, exchange.route.alias))
            return
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    if any(isinstance(answer, EngineAnswer) and answer.status == 200 for answer in answers):
        raise ApiError(502, "The engine's answer cannot be read.", code="unreadable_answer")
    raise ApiError(503, "The engine failed to answer.", code="engine_error", headers={"retry-after": "1"})


async def _answer_streamed(exchange: Exchange, ask: Ask, pair: Pair) -> None:
    tasks = _ask_both(pair, partial(_open, exchange, pair))
    try:
        opened = await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:
        for task in tasks:
            task.add_done_callback(_close_late)
        raise
    streams = [stream for stream in opened if isinstance(stream, CandidateStream)]
    lost = [
        _find_outcome(draft, answer)
        for draft, answer in zip(pair.drafts, opened, strict=True)
        if not isinstance(answer, CandidateStream)
    ]
    if not streams:
        record_pair(exchange, lost, is_duel=pair.is_duel)
        _refuse(exchange, pair, opened)
        return
    if len(streams) == 1:
        count_unasked(exchange, "failed")
        streams[0].draft.index = 0
    call = exchange.call
    call.start()
    async with aclosing(interleave_streams(exchange, ask, pair, streams, lost)) as events:
        async for data in events:
            call.write(data)
            await call.drain()
    call.end()


async def _ask(
    exchange: Exchange, pair: Pair, draft: CandidateDraft, fields: dict[str, Any], *, is_stream: bool
) -> EngineAnswer:
    checkpoint, other = draft.side.checkpoint, pair.drafts[1 - draft.index]

    async def ask(fields: dict[str, Any]) -> EngineAnswer:
        body = add_fields(exchange.body_for(checkpoint), fields)
        return await ask_engine(
            exchange, checkpoint, body, is_stream=is_stream, suffix=f"-{draft.index}", has_other=lambda: other.is_there
        )

    if _adds_token_ids(exchange, pair):
        answer = await ask({**fields, "return_token_ids": True})
        if answer.status == 400 and b"return_token_ids" in answer.body:
            if engine := exchange.context.deployment.engines.get(answer.engine):
                engine.refuses_token_ids = True
            answer = await ask(fields)
    else:
        answer = await ask(fields)
    draft.is_there = answer.status == 200
    return answer


def _adds_token_ids(exchange: Exchange, pair: Pair) -> bool:
    """Whether the engine is asked for token ids, which the app did not speak of."""
    context = exchange.context
    return (
        context.settings.gateway.pair_token_ids
        and not pair.said.chooses_token_ids
        and not any(engine.refuses_token_ids for engine in context.deployment.engines.values())
    )


async def _open(exchange: Exchange, pair: Pair, draft: CandidateDraft) -> CandidateStream | EngineAnswer:
    given = exchange.request.stream_options
    options = {**(given or {}), "include_usage": True, "continuous_usage_stats": False}
    fields = {"seed": draft.side.seed, "stream_options": options}
    answer = await _ask(exchange, pair, draft, fields, is_stream=True)
    if answer.status != 200:
        return answer
    return CandidateStream(draft, answer, Outcome(draft.side.arm, first_byte_s=time.monotonic() - exchange.started))


def _close_late(task: asyncio.Future[CandidateStream | EngineAnswer]) -> None:
    if not task.cancelled() and task.exception() is None and isinstance(stream := task.result(), CandidateStream):
        stream.answer.close()

"""Two answers to one request: both drawn at once, shown as choices[0] and choices[1] with a comparison to answer.

Identical answers collapse to one; if one failed, the other stands alone as index 0. Neither id, model nor fingerprint
tells the client which arm wrote what. Streams are woven in interleave.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import msgspec

from gateway.errors import ApiError
from gateway.http.connection import EngineAnswer
from gateway.serving.attempts import ask_engine, hide_refusal, status_for_client
from gateway.serving.body import add_fields
from gateway.serving.exchange import Exchange
from gateway.serving.metering import settle_tokens
from gateway.serving.outcome import CLIENT_GONE, Outcome, record_pair
from gateway.serving.pairs.asking import Ask, choose_sides
from gateway.serving.pairs.candidates import Draft, Showing, count_unasked, merge_usage, offer_comparison, open_showing
from gateway.serving.pairs.interleave import Strand, weave

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
        showing = open_showing(sides, exchange.context.secrets.pepper)
        await (_answer_streamed if exchange.request.is_stream else _answer_whole)(exchange, ask, showing)
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


async def _answer_whole(exchange: Exchange, ask: Ask, showing: Showing) -> None:
    answers = await asyncio.gather(*_ask_both(showing, partial(_fetch, exchange, showing)), return_exceptions=True)
    drawn: list[tuple[Draft, dict[str, Any]]] = []
    outcomes: list[Outcome] = []
    for draft, answer in zip(showing.drafts, answers, strict=True):
        completion = _read_completion(answer, draft)
        outcomes.append(_find_outcome(draft, answer))
        if completion is not None:
            drawn.append((draft, completion))
    record_pair(exchange, outcomes, is_duel=showing.is_duel)
    if not drawn:
        _refuse(exchange, showing, answers)
        return
    body = dict(drawn[0][1])
    drafts = [draft for draft, _ in drawn]
    if len(drawn) == 2:
        engine = next(answer.engine for answer in answers if isinstance(answer, EngineAnswer))
        comparison = await offer_comparison(exchange, ask, showing, engine)
        if drafts[0].content == drafts[1].content:
            drawn = drawn[:1]
        if comparison is not None:
            body["comparison"] = comparison
    else:
        count_unasked(exchange, "failed")
    body["id"], body["created"] = showing.completion_id, showing.created
    body["model"] = exchange.route.alias
    body["choices"] = [{**completion["choices"][0], "index": i} for i, (_, completion) in enumerate(drawn)]
    body["usage"] = usage = merge_usage(drafts)
    settle_tokens(exchange, usage["prompt_tokens"], usage["completion_tokens"])
    body.pop("system_fingerprint", None)
    exchange.call.send(200, msgspec.json.encode(body))


def _ask_both(showing: Showing, ask: Callable[[Draft], Coroutine[Any, Any, T]]) -> list[asyncio.Task[T]]:
    """Begin both requests, in the showing's order of asking; the tasks are in display order."""
    begun = {draft.index: asyncio.create_task(ask(draft)) for draft in showing.asked}
    return [begun[draft.index] for draft in showing.drafts]


async def _fetch(exchange: Exchange, showing: Showing, draft: Draft) -> EngineAnswer:
    answer = await _ask(exchange, showing, draft, {"seed": draft.side.seed}, is_stream=False)
    draft.seconds_to_finish = time.monotonic() - exchange.started
    return answer


def _read_completion(answer: EngineAnswer | BaseException, draft: Draft) -> dict[str, Any] | None:
    if isinstance(answer, BaseException) or answer.status != 200:
        return None
    try:
        completion: dict[str, Any] = msgspec.json.decode(answer.body)
        choice = completion["choices"][0]
        message = choice["message"]
        draft.text = message.get("content") or ""
        draft.tool_calls = {i: _without_id(call) for i, call in enumerate(message.get("tool_calls") or ())}
        draft.finish_reason = choice.get("finish_reason") or ""
        draft.read_usage(completion.get("usage"))
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None
    draft.is_ended = True
    return completion


def _without_id(call: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if name != "id"}


def _find_outcome(draft: Draft, answer: EngineAnswer | BaseException) -> Outcome:
    """How an answer that is no stream ended."""
    outcome = Outcome(draft.side.arm, num_tokens=draft.completion_tokens)
    if isinstance(answer, EngineAnswer):
        outcome.code = 502 if answer.status == 200 and not draft.is_ended else status_for_client(answer.status)
        outcome.read_bytes(answer.body)
    else:
        outcome.code = answer.status if isinstance(answer, ApiError) else 503
    return outcome


def _refuse(exchange: Exchange, showing: Showing, answers: Sequence[EngineAnswer | Strand | BaseException]) -> None:
    """Neither answer could be made: the engine's own refusal if there is one. Else raises."""
    for draft, answer in zip(showing.drafts, answers, strict=True):
        if isinstance(answer, EngineAnswer) and answer.status != 200 and answer.status < 500:
            exchange.call.send(*hide_refusal(answer, draft.side.checkpoint, exchange.route.alias))
            return
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    raise ApiError(503, "The engine failed to answer.", code="engine_error", headers={"retry-after": "1"})


async def _answer_streamed(exchange: Exchange, ask: Ask, showing: Showing) -> None:
    tasks = _ask_both(showing, partial(_open, exchange, showing))
    try:
        opened = await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:
        for task in tasks:
            task.add_done_callback(_close_late)
        raise
    strands = [strand for strand in opened if isinstance(strand, Strand)]
    lost = [
        _find_outcome(draft, answer)
        for draft, answer in zip(showing.drafts, opened, strict=True)
        if not isinstance(answer, Strand)
    ]
    if not strands:
        record_pair(exchange, lost, is_duel=showing.is_duel)
        _refuse(exchange, showing, opened)
        return
    if len(strands) == 1:
        count_unasked(exchange, "failed")
        strands[0].draft.index = 0
    call = exchange.call
    call.start()
    async with aclosing(weave(exchange, ask, showing, strands, lost)) as events:
        async for data in events:
            call.write(data)
            await call.drain()
    call.end()


async def _ask(
    exchange: Exchange, showing: Showing, draft: Draft, fields: dict[str, Any], *, is_stream: bool
) -> EngineAnswer:
    checkpoint, other = draft.side.checkpoint, showing.drafts[1 - draft.index]
    body = add_fields(exchange.body_for(checkpoint), fields)
    answer = await ask_engine(
        exchange, checkpoint, body, is_stream=is_stream, suffix=f"-{draft.index}", has_other=lambda: other.is_there
    )
    draft.is_there = answer.status == 200
    return answer


async def _open(exchange: Exchange, showing: Showing, draft: Draft) -> Strand | EngineAnswer:
    given = exchange.request.stream_options
    options = {
        **(given if isinstance(given, dict) else {}), "include_usage": True, "continuous_usage_stats": False,
    }  # fmt: skip
    fields = {"seed": draft.side.seed, "stream_options": options}
    answer = await _ask(exchange, showing, draft, fields, is_stream=True)
    if answer.status != 200:
        return answer
    return Strand(draft, answer, Outcome(draft.side.arm, first_byte_s=time.monotonic() - exchange.started))


def _close_late(task: asyncio.Future[Strand | EngineAnswer]) -> None:
    if not task.cancelled() and task.exception() is None and isinstance(strand := task.result(), Strand):
        strand.answer.close()

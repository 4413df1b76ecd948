"""Two answers to one request: both drawn at once, shown as choices[0] and choices[1] with a comparison to answer.

Identical answers collapse to one; if one failed, the other stands alone as index 0. Neither id, model nor fingerprint
tells the client which arm wrote what. Streams are woven in interleave.py.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import msgspec
from starlette.responses import Response

from gateway.attempts import WholeAnswer, fetch_answer, open_answer, relay_refusal
from gateway.body import add_fields
from gateway.candidates import Draft, Showing, count_unasked, merge_usage, offer_comparison, open_showing
from gateway.errors import ApiError
from gateway.exchange import CHAT_PATH, Exchange, Outcome, note_outcome, watch_bytes
from gateway.interleave import Strand, weave
from gateway.pairs import Ask, Side, choose_sides
from gateway.streams import EventStream
from gateway.upstream import EngineAnswer

_rng = random.SystemRandom()


async def answer_pair(exchange: Exchange, ask: Ask) -> Response:
    """Answer twice. Raises ApiError if neither answer could be made."""
    showing = open_showing(
        choose_sides(exchange.view, exchange.who, exchange.route, _rng), exchange.context.secrets.pepper
    )
    if exchange.request.stream:
        return await _answer_streamed(exchange, ask, showing)
    return await _answer_whole(exchange, ask, showing)


async def _answer_whole(exchange: Exchange, ask: Ask, showing: Showing) -> Response:
    answers = await asyncio.gather(*(_fetch(exchange, draft.side) for draft in showing.drafts), return_exceptions=True)
    drawn: list[tuple[Draft, dict[str, Any]]] = []
    for draft, answer in zip(showing.drafts, answers, strict=True):
        completion = _read_completion(answer, draft)
        _note(exchange, draft, answer)
        if completion is not None:
            drawn.append((draft, completion))
    if not drawn:
        return _refuse(exchange, showing, list(answers))
    body = dict(drawn[0][1])
    drafts = [draft for draft, _ in drawn]
    if len(drawn) == 2:
        engine = next(answer.engine for answer in answers if isinstance(answer, WholeAnswer))
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
    body["usage"] = merge_usage(drafts)
    body.pop("system_fingerprint", None)
    return Response(msgspec.json.encode(body), media_type="application/json")


async def _fetch(exchange: Exchange, side: Side) -> WholeAnswer:
    body = add_fields(exchange.body_for(side.checkpoint), {"seed": side.seed})
    return await fetch_answer(exchange.context, side.checkpoint, CHAT_PATH, body)


def _read_completion(answer: WholeAnswer | BaseException, draft: Draft) -> dict[str, Any] | None:
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


def _note(exchange: Exchange, draft: Draft, answer: WholeAnswer | BaseException) -> None:
    outcome = Outcome(draft.side.arm, num_tokens=draft.completion_tokens)
    if isinstance(answer, WholeAnswer):
        outcome.code = answer.status if draft.is_ended or answer.status != 200 else 502
        watch_bytes(outcome, answer.body)
    else:
        outcome.code = answer.status if isinstance(answer, ApiError) else 503
    note_outcome(exchange, outcome, is_paired=exchange.view.rollout is not None)


def _refuse(exchange: Exchange, showing: Showing, answers: list[Any]) -> Response:
    """Neither answer could be made: the engine's own refusal if there is one. Else raises."""
    for draft, answer in zip(showing.drafts, answers, strict=True):
        if isinstance(answer, WholeAnswer) and answer.status != 200 and answer.status < 500:
            return relay_refusal(answer, draft.side.checkpoint, exchange.route.alias)
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
    raise ApiError(503, "The engine failed to answer.", code="engine_error", headers={"retry-after": "1"})


async def _answer_streamed(exchange: Exchange, ask: Ask, showing: Showing) -> Response:
    tasks = [asyncio.ensure_future(_open(exchange, draft)) for draft in showing.drafts]
    try:
        opened = await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:
        for task in tasks:
            task.add_done_callback(_close_late)
        raise
    strands = [strand for strand in opened if isinstance(strand, Strand)]
    if not strands:
        for draft, answer in zip(showing.drafts, opened, strict=True):
            if isinstance(answer, WholeAnswer | BaseException):
                _note(exchange, draft, answer)
        return _refuse(exchange, showing, list(opened))
    if len(strands) == 1:
        count_unasked(exchange, "failed")
        strands[0].draft.index = 0

    def close() -> None:
        for strand in strands:
            strand.answer.close()

    return EventStream(weave(exchange, ask, showing, strands), close)


async def _open(exchange: Exchange, draft: Draft) -> Strand | WholeAnswer:
    options = {**(exchange.request.stream_options or {}), "include_usage": True, "continuous_usage_stats": False}
    body = add_fields(exchange.body_for(draft.side.checkpoint), {"seed": draft.side.seed, "stream_options": options})
    answer = await open_answer(exchange.context, draft.side.checkpoint, CHAT_PATH, body)
    if not isinstance(answer, EngineAnswer):
        return answer
    outcome = Outcome(draft.side.arm, first_byte_s=time.monotonic() - exchange.started)
    return Strand(draft, answer, outcome)


def _close_late(task: asyncio.Future[Strand | WholeAnswer]) -> None:
    if not task.cancelled() and task.exception() is None and isinstance(strand := task.result(), Strand):
        strand.answer.close()

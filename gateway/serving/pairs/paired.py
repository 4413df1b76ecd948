"""Two answers to one request: both drawn at once, shown as choices[0] and choices[1] with a comparison to answer.

Identical answers collapse to one; if one failed, the other stands alone as index 0. Neither id, model nor fingerprint
tells the client which arm wrote what. Streams are interleaved in interleave.py; where the two are picked among several
candidates, candidate_pool.py draws them.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import msgspec

from gateway.http.connection import EngineAnswer
from gateway.serving.exchange import Exchange
from gateway.serving.metering import settle_tokens
from gateway.serving.outcome import CLIENT_GONE, Outcome, record_pair
from gateway.serving.pairs.asking import Ask, Side, add_sides, choose_sides
from gateway.serving.pairs.candidate_pool import list_outcomes, pick_answers, pick_streams
from gateway.serving.pairs.candidates import (
    CandidateDraft,
    Pair,
    count_unasked,
    draft_pair,
    join_drafts,
    merge_usage,
    offer_comparison,
    record_alone,
)
from gateway.serving.pairs.drawing import Drawing, Drawn, close_late, find_outcome, read_drawn, refuse_all
from gateway.serving.pairs.interleave import CandidateStream, interleave_streams
from gateway.serving.pairs.pair_request import read_pair_request
from gateway.serving.pairs.shares import draw_share

_rng = random.SystemRandom()
T = TypeVar("T")


async def answer_pair(exchange: Exchange, ask: Ask) -> None:
    """Answer twice. Raises ApiError if neither answer could be made."""
    if exchange.call.record is not None:
        exchange.call.record.is_paired = True
    two = choose_sides(exchange.view, exchange.who, exchange.route, _rng)
    is_duel = two[0].arm != two[1].arm
    asking = exchange.context.settings.gateway.asking
    if _may_pick(exchange, ask, is_duel=is_duel):
        ask = draw_share(ask, asking, _rng)
    sides = two if ask.share == "random" else add_sides(two, asking.candidates, _rng)
    deployment, asks, user = exchange.context.deployment, exchange.context.asks, exchange.who.user
    asked_at = time.time()
    if user:
        asks.note_asked(user, asked_at)
    for side in sides:  # their requests begin in tasks of their own, a moment later
        deployment.hold(side.checkpoint)
    try:
        if ask.share == "random":
            await _answer_two(exchange, ask, two)
        else:
            await _answer_picked(exchange, ask, sides)
    except asyncio.CancelledError:
        if not exchange.call.is_booked:
            gone = [Outcome(side.arm, CLIENT_GONE) for side in sides]
            record_pair(exchange, gone, is_duel=is_duel)
        raise
    finally:
        if not exchange.is_asked:
            asks.take_back(user, asked_at)
        for side in sides:
            deployment.release(side.checkpoint)


def _may_pick(exchange: Exchange, ask: Ask, *, is_duel: bool) -> bool:
    """Whether the two answers may be picked: not where they judge, nor where a stream would be held against the settings."""
    settings = exchange.context.settings.gateway
    is_held = exchange.request.is_stream and not settings.asking.hold_streams
    return not is_duel and ask.reason != "random" and not is_held and exchange.context.scorer.is_usable


async def _answer_two(exchange: Exchange, ask: Ask, sides: tuple[Side, Side]) -> None:
    said = read_pair_request(exchange.body)
    pair = draft_pair(sides, exchange.context.secrets.pepper, said)
    drawing = Drawing(exchange, said, pair.drafts)
    if exchange.request.is_stream:
        await _answer_streamed(exchange, ask, pair, drawing)
        return
    answers = await asyncio.gather(*_ask_both(pair, drawing.fetch), return_exceptions=True)
    drawn = [read_drawn(exchange, said, draft, answer) for draft, answer in zip(pair.drafts, answers, strict=True)]
    record_pair(exchange, [each.outcome for each in drawn], is_duel=pair.is_duel)
    await _show_whole(exchange, ask, pair, drawn, drawn)


async def _answer_picked(exchange: Exchange, ask: Ask, sides: Sequence[Side]) -> None:
    said = read_pair_request(exchange.body)
    pepper = exchange.context.secrets.pepper
    if not exchange.request.is_stream:
        picked = await pick_answers(exchange, ask, said, sides)
        record_pair(exchange, [each.outcome for each in picked.drawn], is_duel=False)
        if not picked.shown:
            refuse_all(exchange, [(each.draft, each.answer) for each in picked.drawn])
            return
        unshown = [each.draft for each in picked.drawn if each not in picked.shown]
        pair = join_drafts([each.draft for each in picked.shown], pepper, said, unshown)
        shown = sorted(picked.shown, key=lambda each: each.draft.index)
        await _show_whole(exchange, picked.ask, pair, shown, picked.drawn)
        return
    streams = await pick_streams(exchange, ask, said, sides)
    lost = list_outcomes(streams)
    if not streams.shown:
        record_pair(exchange, lost, is_duel=False)
        refuse_all(exchange, streams.lost)
        return
    unshown = [stream.draft for stream in streams.others]
    pair = join_drafts([stream.draft for stream in streams.shown], pepper, said, unshown)
    await _show_streams(exchange, streams.ask, pair, streams.shown, lost)


async def _show_whole(exchange: Exchange, ask: Ask, pair: Pair, shown: Sequence[Drawn], drawn: Sequence[Drawn]) -> None:
    """Answer with what succeeded of the two to show, in display order. drawn: all that was asked for."""
    good = [(each.draft, each.completion) for each in shown if each.completion is not None]
    if not good:
        refuse_all(exchange, [(each.draft, each.answer) for each in drawn])
        return
    body: dict[str, Any] = dict(good[0][1].fields)
    drafts = [draft for draft, _ in good]
    if len(good) == 2:
        engine = next(each.answer.engine for each in shown if isinstance(each.answer, EngineAnswer))
        comparison = await offer_comparison(exchange, ask, pair, engine)
        if drafts[0].content == drafts[1].content:
            good = good[:1]
        if comparison is not None:
            body["comparison"] = comparison
    else:
        count_unasked(exchange, "failed")
    body["id"], body["created"] = pair.completion_id, pair.created
    body["model"] = exchange.route.alias
    body["choices"] = [{**(completion.choice or {}), "index": i} for i, (_, completion) in enumerate(good)]
    body["usage"] = usage = merge_usage([*drafts, *pair.unshown])
    settle_tokens(exchange, usage["prompt_tokens"], usage["completion_tokens"])
    exchange.call.send(200, msgspec.json.encode(body))
    if not exchange.is_asked:
        record_alone(exchange, pair, drafts[0])


def _ask_both(pair: Pair, ask: Callable[[CandidateDraft], Coroutine[Any, Any, T]]) -> list[asyncio.Task[T]]:
    """Begin both requests, in the pair's order of asking; the tasks are in display order."""
    begun = {draft.index: asyncio.create_task(ask(draft)) for draft in pair.asked}
    return [begun[draft.index] for draft in pair.drafts]


async def _answer_streamed(exchange: Exchange, ask: Ask, pair: Pair, drawing: Drawing) -> None:
    tasks = _ask_both(pair, drawing.open)
    try:
        opened = await asyncio.gather(*tasks, return_exceptions=True)
    except asyncio.CancelledError:
        for task in tasks:
            task.add_done_callback(close_late)
        raise
    streams = [stream for stream in opened if isinstance(stream, CandidateStream)]
    lost = [
        (draft, answer)
        for draft, answer in zip(pair.drafts, opened, strict=True)
        if not isinstance(answer, CandidateStream)
    ]
    outcomes = [find_outcome(draft, answer) for draft, answer in lost]
    if not streams:
        record_pair(exchange, outcomes, is_duel=pair.is_duel)
        refuse_all(exchange, lost)
        return
    await _show_streams(exchange, ask, pair, streams, outcomes)


async def _show_streams(
    exchange: Exchange, ask: Ask, pair: Pair, streams: list[CandidateStream], lost: Sequence[Outcome]
) -> None:
    """lost: how the candidates ended that are not shown."""
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

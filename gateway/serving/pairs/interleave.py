"""Interleaves two streams, as OpenAI does for n=2: chunks in the order they come, told apart by `index`.

The chunk with the last finish_reason, and whatever an engine says after it, is held until both answers are complete and
their comparison has committed, and carries it. If index 1 fails it falls silent; if index 0 fails the stream ends in an
error.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.errors import EngineInterrupted, UnreadableAnswer
from gateway.http.sse import DONE, EventSplitter, encode_event, event_data
from gateway.serving.engine_answers import EnginePiece, read_chunk
from gateway.serving.exchange import Exchange
from gateway.serving.metering import guess_prompt, settle_tokens
from gateway.serving.outcome import CLIENT_GONE, Outcome, failure_events, record_broken, record_pair
from gateway.serving.pairs.asking import Ask
from gateway.serving.pairs.candidates import (
    CandidateDraft,
    Pair,
    count_unasked,
    merge_usage,
    offer_comparison,
    record_alone,
)

logger = logging.getLogger("gateway.pairs")

_MAX_QUEUED = 64  # events read ahead of a slow client


class StreamedAnswer(Protocol):
    """An engine's answer that is read as it comes, or one that was held."""

    engine: str

    def chunks(self) -> AsyncIterator[bytes]: ...
    def close(self) -> None: ...


@dataclass
class CandidateStream:
    """One of the streams, with what it has said so far. completed_at: when it was, on the monotonic clock, if it was held."""

    draft: CandidateDraft
    answer: StreamedAnswer
    outcome: Outcome
    completed_at: float | None = None


@dataclass
class _Held:
    """What comes from the last finish on, mostly that one chunk: in its order, until the comparison has committed."""

    chunks: list[dict[str, Any]] = field(default_factory=list)
    last_finish: dict[str, Any] | None = None  # of them, the one that carries the comparison

    def add(self, chunk: dict[str, Any], *, is_finish: bool) -> None:
        """Hold one more."""
        self.chunks.append(chunk)
        if is_finish:
            self.last_finish = chunk


@dataclass(frozen=True)
class _End:
    """A stream has come to its end, or broke."""

    has_failed: bool


_Queue = asyncio.Queue[tuple[CandidateStream, "EnginePiece | _End"]]


async def interleave_streams(
    exchange: Exchange, ask: Ask, pair: Pair, streams: list[CandidateStream], lost: Sequence[Outcome] = ()
) -> AsyncGenerator[bytes, None]:
    """The events for the client. lost: how the candidates ended that are not shown, as they failed before their first byte, or
    were not picked."""
    queue: _Queue = asyncio.Queue(_MAX_QUEUED)
    readers = [asyncio.create_task(_read_stream(exchange, stream, queue)) for stream in streams]
    drafts = [stream.draft for stream in streams]
    for stream in streams:
        stream.outcome.code = CLIENT_GONE  # until it has ended
    held = _Held()
    try:
        while not all(draft.is_ended for draft in drafts):
            stream, item = await queue.get()
            if isinstance(item, _End):
                _end_stream(stream, item)
                if stream.draft.has_failed and stream.draft.index == 0:
                    record_broken(exchange)
                    for other in streams:
                        if not other.draft.is_ended:
                            other.outcome.code = 200  # cut short by us; which one breaks first is the order's coin
                    yield failure_events()
                    return
                continue
            stream.draft.add(item)
            if item.choice is None:  # the engine's own usage
                continue
            stream.draft.num_chunks += 1
            if not pair.said.chooses_token_ids:
                item = item.without_token_ids()
            chunk = _build_chunk(item, stream.draft, exchange.route.alias, pair)
            if held.chunks or (item.finish_reason and _is_last(stream.draft, drafts)):
                held.add(chunk, is_finish=bool(item.finish_reason))
            else:
                yield encode_event(chunk)
        yield await _finish(exchange, ask, pair, streams, held)
    finally:
        for reader in readers:
            reader.cancel()
        # Before anything is awaited: the client may leave just now.
        num_completion = sum(draft.completion_tokens or draft.num_chunks for draft in (*drafts, *pair.unshown))
        num_prompt = merge_usage(drafts)["prompt_tokens"]
        settle_tokens(exchange, num_prompt or guess_prompt(exchange), num_completion, is_estimated=not num_prompt)
        for stream in streams:
            stream.answer.close()
            stream.outcome.num_tokens = stream.draft.completion_tokens
        for draft in drafts:
            if draft.index == 0 and draft.num_chunks and not exchange.is_asked:
                record_alone(exchange, pair, draft)
        record_pair(exchange, [*(stream.outcome for stream in streams), *lost], is_duel=pair.is_duel)
        await asyncio.gather(*readers, return_exceptions=True)


async def _finish(exchange: Exchange, ask: Ask, pair: Pair, streams: list[CandidateStream], held: _Held) -> bytes:
    """The last events: what was held, with the comparison, the usage if the client wants it, the end mark."""
    good = [stream.draft for stream in streams if not stream.draft.has_failed]
    if held.last_finish is not None and len(good) == 2:
        comparison = await offer_comparison(exchange, ask, pair, streams[0].answer.engine)
        if comparison is not None:
            held.last_finish["comparison"] = comparison
    elif len(streams) == 2:
        count_unasked(exchange, "failed")
    events = [encode_event(chunk) for chunk in held.chunks]
    if exchange.request.wants_usage:
        events.append(
            encode_event(_envelope([], exchange.route.alias, pair) | {"usage": merge_usage([*good, *pair.unshown])})
        )
    return b"".join([*events, DONE])


def _end_stream(stream: CandidateStream, end: _End) -> None:
    draft = stream.draft
    draft.is_ended = True
    draft.has_failed = end.has_failed or not draft.finish_reason
    stream.outcome.code = 502 if draft.has_failed else 200


def _is_last(draft: CandidateDraft, drafts: list[CandidateDraft]) -> bool:
    return all(other is draft or other.finish_reason or other.has_failed for other in drafts)


async def _read_stream(exchange: Exchange, stream: CandidateStream, queue: _Queue) -> None:
    """Put every chunk of one stream into the queue, and its end; notes when that was, whatever the client has read."""
    splitter = EventSplitter()
    has_failed = False
    try:
        async for data in stream.answer.chunks():
            exchange.context.deployment.note_progress(stream.answer.engine, time.monotonic())
            for event in splitter.feed(data):
                stream.outcome.read_bytes(event)
                payload = event_data(event)
                if not payload or payload == b"[DONE]":
                    continue
                await queue.put((stream, read_chunk(payload)))
        stream.draft.seconds_to_finish = (stream.completed_at or time.monotonic()) - exchange.started
    except (EngineInterrupted, UnreadableAnswer, ValueError) as error:
        logger.warning("a stream of a pair broke: %s", error, extra=exchange.call.log_fields)
        has_failed = True
    await queue.put((stream, _End(has_failed)))


def _build_chunk(piece: EnginePiece, draft: CandidateDraft, alias: str, pair: Pair) -> dict[str, Any]:
    """What the client sees of one chunk."""
    choice: dict[str, Any] = {**(piece.choice or {}), "index": draft.index}
    return {**piece.fields, **_envelope([choice], alias, pair)}


def _envelope(choices: list[dict[str, Any]], alias: str, pair: Pair) -> dict[str, Any]:
    return {
        "id": pair.completion_id,
        "object": "chat.completion.chunk",
        "created": pair.created,
        "model": alias,
        "choices": choices,
    }

"""Weaves two streams into one, as OpenAI does for n=2: chunks in the order they come, told apart by `index`.

The chunk with the last finish_reason is held until both answers are complete and their comparison has committed, and
carries it. If index 1 fails it falls silent; if index 0 fails the stream ends in an error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import EngineInterrupted
from gateway.http.connection import EngineAnswer
from gateway.http.sse import DONE, EventSplitter, encode_event, event_data
from gateway.serving.exchange import (
    CLIENT_GONE,
    Exchange,
    Outcome,
    failure_events,
    note_failure,
    note_pair,
    watch_bytes,
)
from gateway.serving.metering import guess_prompt, settle_tokens
from gateway.serving.pairs.asking import Ask
from gateway.serving.pairs.candidates import CandidateDraft, Pair, count_unasked, merge_usage, offer_comparison

_MAX_QUEUED = 64  # events read ahead of a slow client


@dataclass
class CandidateStream:
    """One of the streams, with what it has said so far."""

    draft: CandidateDraft
    answer: EngineAnswer
    outcome: Outcome


@dataclass(frozen=True)
class _End:
    """A stream has come to its end, or broke."""

    has_failed: bool


_Queue = asyncio.Queue[tuple[CandidateStream, "dict[str, Any] | _End"]]


async def interleave_streams(
    exchange: Exchange, ask: Ask, pair: Pair, streams: list[CandidateStream], lost: Sequence[Outcome] = ()
) -> AsyncGenerator[bytes, None]:
    """The events for the client. lost: how the one ended that is no stream, because it failed before its first byte."""
    queue: _Queue = asyncio.Queue(_MAX_QUEUED)
    readers = [asyncio.create_task(_read_stream(exchange, stream, queue)) for stream in streams]
    drafts = [stream.draft for stream in streams]
    for stream in streams:
        stream.outcome.code = CLIENT_GONE  # until it has ended
    held: dict[str, Any] | None = None
    try:
        while not all(draft.is_ended for draft in drafts):
            stream, item = await queue.get()
            if isinstance(item, _End):
                _end_stream(stream, item)
                if stream.draft.has_failed and stream.draft.index == 0:
                    note_failure(exchange)
                    for other in streams:
                        if not other.draft.is_ended:
                            other.outcome.code = 200  # cut short by us; which one breaks first is the order's coin
                    yield failure_events()
                    return
                continue
            shown = _show(stream, item, exchange.route.alias, pair)
            if shown is None:
                continue
            if shown["choices"][0].get("finish_reason") and _is_last(stream.draft, drafts):
                held = shown
            else:
                yield encode_event(shown)
        yield await _finish(exchange, ask, pair, streams, held)
    finally:
        for reader in readers:
            reader.cancel()
        # Before anything is awaited: the client may leave just now.
        num_completion = sum(draft.completion_tokens or draft.num_chunks for draft in drafts)
        settle_tokens(exchange, merge_usage(drafts)["prompt_tokens"] or guess_prompt(exchange), num_completion)
        for stream in streams:
            stream.answer.close()
            stream.outcome.num_tokens = stream.draft.completion_tokens
        note_pair(exchange, [*(stream.outcome for stream in streams), *lost], is_duel=pair.is_duel)
        await asyncio.gather(*readers, return_exceptions=True)


async def _finish(
    exchange: Exchange, ask: Ask, pair: Pair, streams: list[CandidateStream], held: dict[str, Any] | None
) -> bytes:
    """The last events: the held chunk with its comparison, the usage if the client wants it, the end mark."""
    good = [stream.draft for stream in streams if not stream.draft.has_failed]
    events: list[bytes] = []
    if held is not None and len(good) == 2:
        comparison = await offer_comparison(exchange, ask, pair, streams[0].answer.engine)
        if comparison is not None:
            held["comparison"] = comparison
    elif len(streams) == 2:
        count_unasked(exchange, "failed")
    if held is not None:
        events.append(encode_event(held))
    if exchange.request.wants_usage:
        events.append(encode_event(_envelope([], exchange.route.alias, pair) | {"usage": merge_usage(good)}))
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
                watch_bytes(stream.outcome, event)
                payload = event_data(event)
                if not payload or payload == b"[DONE]":
                    continue
                chunk = msgspec.json.decode(payload, type=dict[str, Any])
                if "error" in chunk:
                    raise EngineInterrupted(str(chunk["error"]))
                await queue.put((stream, chunk))
        stream.draft.seconds_to_finish = time.monotonic() - exchange.started
    except (EngineInterrupted, ValueError, RecursionError):
        has_failed = True
    await queue.put((stream, _End(has_failed)))


def _show(stream: CandidateStream, chunk: dict[str, Any], alias: str, pair: Pair) -> dict[str, Any] | None:
    """What the client sees of one chunk; None for the engine's own usage chunk. Keeps the draft up to date."""
    draft = stream.draft
    draft.read_usage(chunk.get("usage"))
    choices = chunk.get("choices") or []
    if not choices:
        return None
    draft.num_chunks += 1
    choice = dict(choices[0])
    delta = choice.get("delta") or {}
    draft.text += delta.get("content") or ""
    for call in delta.get("tool_calls") or ():
        _add_tool_call(draft.tool_calls, call)
    draft.finish_reason = choice.get("finish_reason") or draft.finish_reason
    choice["index"] = draft.index
    rest = {name: value for name, value in chunk.items() if name not in ("usage", "system_fingerprint")}
    return rest | _envelope([choice], alias, pair)


def _add_tool_call(calls: dict[int, Any], call: dict[str, Any]) -> None:
    empty = {"type": "function", "function": {"name": "", "arguments": ""}}
    known = calls.setdefault(int(call.get("index") or 0), empty)
    for name in ("name", "arguments"):
        known["function"][name] += (call.get("function") or {}).get(name) or ""


def _envelope(choices: list[dict[str, Any]], alias: str, pair: Pair) -> dict[str, Any]:
    return {
        "id": pair.completion_id,
        "object": "chat.completion.chunk",
        "created": pair.created,
        "model": alias,
        "choices": choices,
    }

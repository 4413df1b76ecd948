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
from gateway.serving.exchange import Exchange
from gateway.serving.metering import guess_prompt, settle_tokens
from gateway.serving.outcome import CLIENT_GONE, Outcome, failure_events, record_broken, record_pair
from gateway.serving.pairs.asking import Ask
from gateway.serving.pairs.candidates import Draft, Showing, count_unasked, merge_usage, offer_comparison

_MAX_QUEUED = 64  # events read ahead of a slow client


@dataclass
class Strand:
    """One of the streams, with what it has said so far."""

    draft: Draft
    answer: EngineAnswer
    outcome: Outcome


@dataclass(frozen=True)
class _End:
    """A strand has come to its end, or broke."""

    has_failed: bool


_Queue = asyncio.Queue[tuple[Strand, "dict[str, Any] | _End"]]


async def weave(
    exchange: Exchange, ask: Ask, showing: Showing, strands: list[Strand], lost: Sequence[Outcome] = ()
) -> AsyncGenerator[bytes, None]:
    """The events for the client. lost: how the one ended that is no strand, because it failed before its first byte."""
    queue: _Queue = asyncio.Queue(_MAX_QUEUED)
    readers = [asyncio.create_task(_read_strand(exchange, strand, queue)) for strand in strands]
    drafts = [strand.draft for strand in strands]
    for strand in strands:
        strand.outcome.code = CLIENT_GONE  # until it has ended
    held: dict[str, Any] | None = None
    try:
        while not all(draft.is_ended for draft in drafts):
            strand, item = await queue.get()
            if isinstance(item, _End):
                _end_strand(strand, item)
                if strand.draft.has_failed and strand.draft.index == 0:
                    record_broken(exchange)
                    for other in strands:
                        if not other.draft.is_ended:
                            other.outcome.code = 200  # cut short by us; which one breaks first is the order's coin
                    yield failure_events()
                    return
                continue
            shown = _show(strand, item, exchange.route.alias, showing)
            if shown is None:
                continue
            if shown["choices"][0].get("finish_reason") and _is_last(strand.draft, drafts):
                held = shown
            else:
                yield encode_event(shown)
        yield await _finish(exchange, ask, showing, strands, held)
    finally:
        for reader in readers:
            reader.cancel()
        # Before anything is awaited: the client may leave just now.
        num_completion = sum(draft.completion_tokens or draft.num_chunks for draft in drafts)
        settle_tokens(exchange, merge_usage(drafts)["prompt_tokens"] or guess_prompt(exchange), num_completion)
        for strand in strands:
            strand.answer.close()
            strand.outcome.num_tokens = strand.draft.completion_tokens
        record_pair(exchange, [*(strand.outcome for strand in strands), *lost], is_duel=showing.is_duel)
        await asyncio.gather(*readers, return_exceptions=True)


async def _finish(
    exchange: Exchange, ask: Ask, showing: Showing, strands: list[Strand], held: dict[str, Any] | None
) -> bytes:
    """The last events: the held chunk with its comparison, the usage if the client wants it, the end mark."""
    good = [strand.draft for strand in strands if not strand.draft.has_failed]
    events: list[bytes] = []
    if held is not None and len(good) == 2:
        comparison = await offer_comparison(exchange, ask, showing, strands[0].answer.engine)
        if comparison is not None:
            held["comparison"] = comparison
    elif len(strands) == 2:
        count_unasked(exchange, "failed")
    if held is not None:
        events.append(encode_event(held))
    if exchange.request.wants_usage:
        events.append(encode_event(_envelope([], exchange.route.alias, showing) | {"usage": merge_usage(good)}))
    return b"".join([*events, DONE])


def _end_strand(strand: Strand, end: _End) -> None:
    draft = strand.draft
    draft.is_ended = True
    draft.has_failed = end.has_failed or not draft.finish_reason
    strand.outcome.code = 502 if draft.has_failed else 200


def _is_last(draft: Draft, drafts: list[Draft]) -> bool:
    return all(other is draft or other.finish_reason or other.has_failed for other in drafts)


async def _read_strand(exchange: Exchange, strand: Strand, queue: _Queue) -> None:
    """Put every chunk of one stream into the queue, and its end; notes when that was, whatever the client has read."""
    splitter = EventSplitter()
    has_failed = False
    try:
        async for data in strand.answer.chunks():
            exchange.context.deployment.note_progress(strand.answer.engine, time.monotonic())
            for event in splitter.feed(data):
                strand.outcome.read_bytes(event)
                payload = event_data(event)
                if not payload or payload == b"[DONE]":
                    continue
                chunk = msgspec.json.decode(payload, type=dict[str, Any])
                if "error" in chunk:
                    raise EngineInterrupted(str(chunk["error"]))
                await queue.put((strand, chunk))
        strand.draft.seconds_to_finish = time.monotonic() - exchange.started
    except (EngineInterrupted, ValueError, RecursionError):
        has_failed = True
    await queue.put((strand, _End(has_failed)))


def _show(strand: Strand, chunk: dict[str, Any], alias: str, showing: Showing) -> dict[str, Any] | None:
    """What the client sees of one chunk; None for the engine's own usage chunk. Keeps the draft up to date."""
    draft = strand.draft
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
    return rest | _envelope([choice], alias, showing)


def _add_tool_call(calls: dict[int, Any], call: dict[str, Any]) -> None:
    empty = {"type": "function", "function": {"name": "", "arguments": ""}}
    known = calls.setdefault(int(call.get("index") or 0), empty)
    for name in ("name", "arguments"):
        known["function"][name] += (call.get("function") or {}).get(name) or ""


def _envelope(choices: list[dict[str, Any]], alias: str, showing: Showing) -> dict[str, Any]:
    return {
        "id": showing.completion_id,
        "object": "chat.completion.chunk",
        "created": showing.created,
        "model": alias,
        "choices": choices,
    }

"""Takes what an app says of one completion that it was served: thumb, rating, edited text, outcome, comment.

Acknowledged only after the transaction that holds the signal has committed; if it cannot, 503 and Retry-After. An
`Idempotency-Key` makes repeats harmless, as in draft-ietf-httpapi-idempotency-key-header: the same request replays the
stored answer, another request under the same key gets 422. Keys are kept as long as their signals.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from typing import Literal

import msgspec
from fastapi import APIRouter, Request
from msgspec.structs import asdict, replace
from prometheus_client import Counter
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from feedback.errors import ConflictingSignal, DatabaseError
from feedback.events import Outcome, Signal
from feedback.signals import StoredSignal, find_signal, fingerprint_signal, record_signal
from gateway.access.auth import authenticate_request
from gateway.access.keys import Identity
from gateway.api.request_body import read_body
from gateway.api.routes import APPS, OF_ANY, OF_KEYS, Operation, add_route, render
from gateway.api.signal_request import SCALE, SignalRequest, parse_signal, read_idempotency_key
from gateway.errors import ApiError, bad_request, not_found, unavailable
from gateway.serving.context import Context
from gateway.serving.metrics import ARMS
from gateway.serving.pairs.pair_request import read_pair_request
from gateway.serving.recording.comparison_lookup import NoSuchCandidate, ShownCandidate, find_candidate, may_be_pair
from gateway.serving.recording.completion_reader import NoSuchChoice, read_answer, read_messages, read_prompt
from gateway.serving.recording.completion_store import StoredCompletion
from gateway.serving.routing import find_opening, read_header_name
from gateway.tables.checkpoints import get_checkpoint

logger = logging.getLogger("gateway.signals")

_COMMIT_TIMEOUT_S = 10.0
_ID = re.compile(r"[^\x00-\x1f\x7f]{1,300}")


class SignalAnswer(msgspec.Struct, frozen=True):
    """A signal that is stored."""

    id: str
    completion_id: str
    created: int
    object: Literal["completion.signal"] = "completion.signal"


_SIGNAL = Operation(
    tag=APPS,
    summary="Say what became of an answer: thumb, rating, edited text, outcome, comment",
    answers={200: SignalAnswer},
    refusals=OF_ANY | OF_KEYS | {404, 413, 422, 503},
    body=SignalRequest,
    headers=("x-prefloop-user", "idempotency-key"),
)


def build_signals_router(context: Context) -> APIRouter:
    """POST /v1/completions/{completion_id}/signal."""
    router = APIRouter()
    counter = Counter("prefloop_signals", "Signals acknowledged.", registry=context.metrics.registry)

    @add_route(router, "POST", "/v1/completions/{completion_id}/signal", _SIGNAL)
    async def signal(completion_id: str, request: Request) -> Response:
        identity = authenticate_request(request, context.keys, "app", "chooser")
        body = await read_body(request, context.settings.gateway.max_event_bytes)
        stored = await take_signal(context, identity, completion_id, request.headers, body)
        if stored.status == "created":
            counter.inc()
            context.relay.notify()
        headers = {"idempotent-replayed": "true"} if stored.status == "replayed" else None
        return render(SignalAnswer(stored.id, stored.completion_id, int(stored.created_at)), headers=headers)

    return router


async def take_signal(
    context: Context, identity: Identity, completion_id: str, headers: Mapping[str, str], body: bytes
) -> StoredSignal:
    """Store a signal. Raises ApiError 400, 404, 413, 422 or 503."""
    request = parse_signal(body)
    key = read_idempotency_key(headers)
    fingerprint = fingerprint_signal(completion_id, request)
    try:
        if key is not None:
            stored = await asyncio.to_thread(_find_signal, context, identity.app, key, fingerprint)
            if stored is not None:
                return stored  # also when the completion is no longer kept
        signal = await describe_signal(context, identity, completion_id, headers, request)
        return await asyncio.wait_for(
            context.writer.arun(lambda conn: record_signal(conn, signal, fingerprint=fingerprint, idempotency_key=key)),
            _COMMIT_TIMEOUT_S,
        )
    except ConflictingSignal as error:
        raise ApiError(422, str(error), code="idempotency_key_reused", param="idempotency-key") from None
    except (DatabaseError, SQLAlchemyError, OSError, TimeoutError) as error:
        logger.error("a signal could not be stored: %s", error)
        raise unavailable("The signal could not be stored; send it again.") from error


async def describe_signal(
    context: Context, identity: Identity, completion_id: str, headers: Mapping[str, str], request: SignalRequest
) -> Signal:
    """The signal with what it was said of. Raises ApiError 400, 404 or 413, and what reading the databases raises."""
    is_possible = _ID.fullmatch(completion_id) is not None
    shown = await _find_candidate(context, identity.app, completion_id, request.index)
    is_single = is_possible and shown is None
    row = await context.completions.find(identity.app, completion_id) if is_single else None
    if row is None and shown is None and (request.messages is None or not is_possible):
        raise not_found(
            "No completion with this id was recorded for this key's app; send `messages` and `answer` along.",
            code="unknown_completion",
        )
    signal = Signal(
        completion_id=completion_id,
        kind="said",
        created_at=time.time(),
        index=request.index,
        app=identity.app,
        thumb=request.thumb,
        rating=request.rating,
        scale=None if request.rating is None else request.scale or SCALE,
        edited_text=request.edited_text,
        outcome=None if request.outcome is None else Outcome(**asdict(request.outcome)),
        comment=request.comment,
    )
    if shown is not None:
        return _add_shown(context, signal, shown)
    if row is not None:
        return await asyncio.to_thread(_add_recorded, context, signal, row)
    named = read_header_name(headers.get("x-prefloop-user"))
    user = context.secrets.hash_user(identity.app, named) if named else ""
    signal = replace(signal, messages=request.messages, answer=request.answer, user=user)
    return _choose_fitting(context, signal)


async def _find_candidate(context: Context, app: str, completion_id: str, index: int) -> ShownCandidate | None:
    """The answer of a pair that has this id. Raises ApiError 400 for an index that it does not have."""
    if not may_be_pair(completion_id):
        return None

    def find() -> ShownCandidate | None:
        with context.database.connect() as conn:
            return find_candidate(conn, app, completion_id, index)

    try:
        return await asyncio.to_thread(find)
    except NoSuchCandidate as error:
        raise bad_request(f"{str(error).capitalize()}.", param="index") from None


def _add_shown(context: Context, signal: Signal, shown: ShownCandidate) -> Signal:
    """The signal with what its comparison says of the answer, the words only if they fit into an event."""
    comparison, candidate = shown.comparison, shown.candidate
    signal = replace(
        signal,
        is_recorded=True,
        completed_at=comparison.created_at,
        policy=comparison.policy,
        user=comparison.user,
        conversation=comparison.conversation,
        checkpoint=candidate.checkpoint,
        digest=candidate.digest,
        arm=candidate.arm,
        tags=comparison.tags,
        finish_reason=candidate.finish_reason,
    )
    whole = replace(
        signal,
        messages=comparison.messages,
        answer=candidate.text,
        tools=comparison.tools,
        chat_template_kwargs=comparison.chat_template_kwargs,
        reasoning=candidate.reasoning,
        tool_calls=candidate.tool_calls,
    )
    with_ids = replace(whole, prompt_token_ids=comparison.prompt_token_ids, token_ids=candidate.token_ids)
    return _choose_fitting(context, with_ids, whole, signal)


def _add_recorded(context: Context, signal: Signal, row: StoredCompletion) -> Signal:
    """The signal with the recorded request and answer, as far as they can be read and fit into an event."""
    with context.database.connect() as conn:
        checkpoint = get_checkpoint(conn, row.checkpoint)
    signal = replace(
        signal,
        is_recorded=True,
        completed_at=row.created_at,
        policy=row.policy,
        user=row.user,
        conversation=row.conversation,
        checkpoint=row.checkpoint,
        digest="" if checkpoint is None else checkpoint.digest,
        arm=row.arm if row.arm in ARMS else None,
    )
    try:
        messages = read_messages(row)
        if messages is not None and not row.conversation:  # the hot path makes this hash only when it needs it
            opening = find_opening(messages)
            conversation = context.secrets.keyed_hash("conversation", row.app, row.user, *opening)
            signal = replace(signal, conversation=conversation)
        said, asked = read_answer(row, signal.index), read_pair_request(row.request)
        signal = replace(signal, tags=asked.tags, finish_reason=said.finish_reason)
        whole = replace(
            signal,
            messages=messages,
            prompt=read_prompt(row),
            answer=said.text,
            tools=asked.tools,
            chat_template_kwargs=asked.chat_template_kwargs,
            reasoning=said.reasoning,
            tool_calls=said.tool_calls,
        )
    except NoSuchChoice as error:
        raise bad_request(f"{str(error).capitalize()}.", param="index") from None
    except ValueError as error:
        logger.warning("a signal goes without its completion: %s", error)
        return _choose_fitting(context, signal)
    return _choose_fitting(context, whole, signal)


def _choose_fitting(context: Context, *signals: Signal) -> Signal:
    """The first that fits into an event. Raises ApiError 413 if the last, which says least, does not."""
    for signal in signals[:-1]:
        if _fits(context, signal):
            return signal
    _check_size(context, signals[-1])
    return signals[-1]


def _fits(context: Context, signal: Signal) -> bool:
    return len(msgspec.json.encode(signal)) <= context.settings.gateway.max_event_bytes


def _check_size(context: Context, signal: Signal) -> None:
    if not _fits(context, signal):
        max_bytes = context.settings.gateway.max_event_bytes
        raise ApiError(413, f"The signal takes more than {max_bytes} bytes.", code="request_too_large")


def _find_signal(context: Context, app: str, key: str, fingerprint: str) -> StoredSignal | None:
    with context.database.connect() as conn:
        return find_signal(conn, app, key, fingerprint)

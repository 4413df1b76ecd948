"""The hot path: one request to an engine in, one or two answers out.

Reads the request and decides, in the read that brought it, who answers; single.py and pairs/ do the answering. What
need not wait is asked of the engine in that very step.
"""

from __future__ import annotations

import random
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from gateway.access.auth import authenticate_header
from gateway.access.keys import Identity
from gateway.errors import ApiError
from gateway.http.call import Call, Handler
from gateway.serving.body import parse_request
from gateway.serving.context import Context
from gateway.serving.endpoints import CHAT, ENDPOINTS, Endpoint
from gateway.serving.exchange import Exchange, served_checkpoints
from gateway.serving.outcome import count_refusals
from gateway.serving.pairs.asking import Ask, decide_ask, may_pair, read_compare
from gateway.serving.pairs.paired import answer_pair
from gateway.serving.recording.comparison_recorder import ComparisonRecorder
from gateway.serving.routing import Header, choose_route, identify_user
from gateway.serving.single import Passage, answer_single

_NOBODY: frozenset[str] = frozenset()
_rng = random.SystemRandom()


def build_handlers(context: Context) -> dict[bytes, Handler]:
    """The handlers of every path that reaches an engine under an app's key."""

    def bind(endpoint: Endpoint) -> Handler:
        def handle(call: Call) -> Coroutine[Any, Any, None] | None:
            body = call.body
            given = call.headers.get(b"authorization")
            try:
                identity = authenticate_header(given, context.keys, "app")
            except ApiError:
                if given is None or not context.key_follower.may_find(given):
                    raise
                return _answer_newcomer(context, given, endpoint, call, body)
            return begin(context, identity, endpoint, call, call.header, body, may_hurry=call.record is None)

        return count_refusals(context, handle)

    return {path: bind(endpoint) for path, endpoint in ENDPOINTS.items()}


async def _answer_newcomer(context: Context, given: bytes, endpoint: Endpoint, call: Call, body: bytes) -> None:
    """Answer a request under a key that another gateway may have made since the keys were read. Raises ApiError."""
    await context.key_follower.look()
    identity = authenticate_header(given, context.keys, "app")
    work = begin(context, identity, endpoint, call, call.header, body)
    assert work is not None
    await work


async def answer_chat(
    context: Context, identity: Identity, call: Call, headers: Mapping[bytes, str], body: bytes
) -> None:
    """Answer a chat request that some page of ours made. Raises ApiError."""
    work = begin(context, identity, CHAT, call, headers.get, body)
    assert work is not None
    await work


def begin(
    context: Context,
    identity: Identity,
    endpoint: Endpoint,
    call: Call,
    header: Header,
    body: bytes,
    *,
    may_hurry: bool = False,
) -> Coroutine[Any, Any, None] | None:
    """Begin to answer one request: what goes on with it, or None if its engine has been asked already.

    `may_hurry`: nobody watches how it is answered. Raises ApiError.
    """
    if call.record is not None:
        call.record.app, call.record.key_id = identity.app, identity.key_id
    if identity.limits is not None:
        now = time.time()
        is_admitted = context.limits.try_admit(identity, now)
        if is_admitted is None:
            return _answer_later(context, identity, endpoint, call, header, body)
        if not is_admitted:
            raise context.limits.refusal(identity, now)
        call.extra = context.limits.header_lines(identity, now)
    exchange, ask = _decide(context, identity, endpoint, call, header, body)
    if may_hurry and ask is None and not exchange.request.is_stream and (passage := Passage.begin(exchange)):
        call.running = passage
        return None
    return _answer(exchange, ask)


async def _answer_later(
    context: Context, identity: Identity, endpoint: Endpoint, call: Call, header: Header, body: bytes
) -> None:
    """Wait for a lease from the key's limits, then answer."""
    now = time.time()
    await context.limits.admit(identity, now, call.log_fields)
    call.extra = context.limits.header_lines(identity, now)
    await _answer(*_decide(context, identity, endpoint, call, header, body))


def _decide(
    context: Context, identity: Identity, endpoint: Endpoint, call: Call, header: Header, body: bytes
) -> tuple[Exchange, Ask | None]:
    exchange = open_exchange(context, identity, endpoint, call, header, body)
    return exchange, choose_ask(exchange, header) if endpoint.may_pair else None


def _answer(exchange: Exchange, ask: Ask | None) -> Coroutine[Any, Any, None]:
    return answer_single(exchange) if ask is None else answer_pair(exchange, ask)


def open_exchange(
    context: Context, identity: Identity, endpoint: Endpoint, call: Call, header: Header, body: bytes
) -> Exchange:
    """Read the request and choose who answers it. Raises ApiError."""
    request, span = parse_request(body, allow_remote_media=context.settings.gateway.allow_remote_media)
    endpoint.refuse(request, prompt_logprobs=context.settings.gateway.refuse_prompt_logprobs)
    who = identify_user(request, header, identity.app, context.secrets)
    view = context.deployment.view
    alias = context.settings.policy
    known = _NOBODY if request.model == alias else served_checkpoints(context)
    route = choose_route(request.model, alias, who, identity, view, known)
    is_recorded = endpoint.generates and context.completions.is_recording
    return Exchange(
        context, identity, call, endpoint, body, request, span, who, view, route, time.monotonic(), is_recorded
    )


def choose_ask(exchange: Exchange, header: Header) -> Ask | None:
    """Whether this request is answered twice; counts why not where it was due."""
    compare = read_compare(header(b"x-prefloop-compare"))
    if compare == "never":
        return None
    context = exchange.context
    settings = context.settings.gateway
    ask = decide_ask(compare, exchange.who, settings, context.asks, now=time.time(), rng=_rng)
    if ask is None:
        return None
    reason = may_pair(
        exchange.request, exchange.identity, exchange.route, len(exchange.body), settings.max_event_bytes
    ) or find_obstacle(context.recorder)
    if reason is None:
        return ask
    context.deployment.counters.not_paired[reason] += 1
    context.metrics.count_not_paired(reason)
    return None


def find_obstacle(recorder: ComparisonRecorder) -> str | None:
    """Why no comparison can be stored now, so that two answers would be made for nothing."""
    if recorder.is_failing:
        return "database"
    return "backlog" if recorder.is_backed_up else None

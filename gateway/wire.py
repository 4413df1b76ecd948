"""The chat hot path: one request in, one or two answers out. Serves apps and the playground alike.

Single answers pass through as bytes: only the top-level `model` changes, in both directions and in every event of a
stream. Once the first byte of a stream is out, a failure ends the stream with an error event.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncGenerator, Mapping

from starlette.responses import Response

from gateway.attempts import WholeAnswer, fetch_answer, open_answer, relay_refusal
from gateway.body import parse_chat_request, restore_model
from gateway.context import Context
from gateway.errors import ApiError, CheckpointGone, EngineInterrupted, forbidden, unavailable
from gateway.exchange import CHAT_PATH, CLIENT_GONE, Exchange, Outcome, note_outcome, served_checkpoints, watch_bytes
from gateway.keys import Identity
from gateway.paired import answer_pair
from gateway.pairs import Ask, decide_ask, may_pair, read_compare
from gateway.routing import choose_route, identify_user
from gateway.sse import EventSplitter
from gateway.streams import EventStream, failure_events
from gateway.upstream import EngineAnswer

_MAX_REROUTES = 3
_rng = random.SystemRandom()


async def answer_chat(context: Context, identity: Identity, headers: Mapping[str, str], body: bytes) -> Response:
    """Answer one chat request; `headers` have lower-case names. Raises ApiError."""
    if not identity.may("app"):
        raise forbidden("This key lacks the scope app.")
    counters = context.deployment.counters
    counters.requests += 1
    try:
        exchange = open_exchange(context, identity, headers, body)
        ask = choose_ask(exchange, headers)
        return await (answer_single(exchange) if ask is None else answer_pair(exchange, ask))
    except CheckpointGone:
        counters.failed_requests += 1
        raise unavailable("The checkpoint was unloaded; ask again.") from None
    except ApiError as error:
        if error.status >= 500:
            counters.failed_requests += 1
        raise


def open_exchange(context: Context, identity: Identity, headers: Mapping[str, str], body: bytes) -> Exchange:
    """Read the request and choose who answers it. Raises ApiError."""
    request, span = parse_chat_request(body)
    who = identify_user(request, headers, identity.app, context.secrets)
    view = context.deployment.view
    known = served_checkpoints(context) if request.model != context.settings.policy else frozenset[str]()
    route = choose_route(request.model, context.settings.policy, who, identity, view, known)
    return Exchange(context, identity, body, request, span, who, view, route)


def choose_ask(exchange: Exchange, headers: Mapping[str, str]) -> Ask | None:
    """Whether this request is answered twice; counts why not where it was due."""
    context = exchange.context
    compare = read_compare(headers.get("x-prefloop-compare"))
    settings = context.settings.gateway
    ask = decide_ask(compare, exchange.who, settings, context.asks, now=time.time(), rng=_rng)
    if ask is None:
        return None
    reason = may_pair(
        exchange.request, exchange.identity, exchange.route, len(exchange.body), settings.max_event_bytes
    ) or ("backlog" if context.recorder.is_backed_up else None)
    if reason is None:
        return ask
    context.deployment.counters.not_paired[reason] += 1
    context.metrics.count_not_paired(reason)
    return None


async def answer_single(exchange: Exchange) -> Response:
    """One answer, passed through. Raises ApiError, CheckpointGone."""
    for _ in range(_MAX_REROUTES):
        outcome = Outcome(exchange.route.arm)
        try:
            ask = open_answer if exchange.request.stream else fetch_answer
            answer = await ask(exchange.context, exchange.route.checkpoint, CHAT_PATH, exchange.engine_body)
        except CheckpointGone:
            exchange = exchange.reroute()
            continue
        except ApiError as error:
            outcome.code = error.status
            note_outcome(exchange, outcome)
            raise
        if isinstance(answer, EngineAnswer):
            outcome.first_byte_s = time.monotonic() - exchange.started
            return EventStream(_pass_events(exchange, answer, outcome), answer.close, _own_headers(exchange))
        return _pass_whole(exchange, answer, outcome)
    raise CheckpointGone(exchange.route.checkpoint)


def _pass_whole(exchange: Exchange, answer: WholeAnswer, outcome: Outcome) -> Response:
    outcome.code = answer.status
    watch_bytes(outcome, answer.body)
    note_outcome(exchange, outcome)
    if answer.status != 200:
        return relay_refusal(answer, exchange.route.checkpoint, exchange.route.alias)
    body = restore_model(answer.body, exchange.route.checkpoint, exchange.route.alias)
    return Response(body, media_type="application/json", headers=_own_headers(exchange))


async def _pass_events(exchange: Exchange, answer: EngineAnswer, outcome: Outcome) -> AsyncGenerator[bytes, None]:
    checkpoint, alias = exchange.route.checkpoint, exchange.route.alias
    splitter = EventSplitter()
    outcome.code = CLIENT_GONE  # until the stream has ended
    code = 200
    try:
        async for chunk in answer.chunks():
            events = splitter.feed(chunk)
            if not events:
                continue
            for event in events:
                watch_bytes(outcome, event)
                if event.startswith(b'data: {"error"'):
                    code = 500
            outcome.num_tokens += len(events)
            yield b"".join([restore_model(event, checkpoint, alias) for event in events])
        if splitter.rest():
            yield restore_model(splitter.rest(), checkpoint, alias)
        outcome.code = code
    except (EngineInterrupted, ValueError):
        outcome.code = 502
        yield failure_events()
    finally:
        answer.close()
        if outcome.code >= 500:
            exchange.context.deployment.counters.failed_requests += 1
        note_outcome(exchange, outcome)


def _own_headers(exchange: Exchange) -> dict[str, str]:
    return {"x-prefloop-checkpoint": exchange.route.checkpoint} if exchange.identity.may("operator") else {}

"""The hot path: one request to an engine in, one or two answers out.

Single answers pass through as bytes: only the top-level `model` changes, in both directions and in every event of a
stream. Once the first byte of a stream is out, a failure ends the stream with an error event.
"""

from __future__ import annotations

import random
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from gateway.attempts import ask_engine, hide_refusal
from gateway.auth import authenticate_header
from gateway.body import parse_request, restore_model
from gateway.context import Context
from gateway.endpoints import CHAT, ENDPOINTS, Endpoint
from gateway.errors import ApiError, CheckpointGone, EngineInterrupted, unavailable
from gateway.exchange import (
    CLIENT_GONE,
    Exchange,
    Outcome,
    failure_events,
    note_failure,
    note_outcome,
    served_checkpoints,
    watch_bytes,
)
from gateway.http.call import EVENTS, Call, Handler
from gateway.http.connection import EngineAnswer
from gateway.http.sse import EventTail
from gateway.keys import Identity
from gateway.limits.metering import StreamMeter, settle_answer
from gateway.pairs.asking import Ask, decide_ask, may_pair, read_compare
from gateway.pairs.paired import answer_pair
from gateway.recording.recorder import Recorder
from gateway.routing import Header, choose_route, identify_user

_MAX_REROUTES = 3
_NOBODY: frozenset[str] = frozenset()
_rng = random.SystemRandom()


def build_handlers(context: Context) -> dict[bytes, Handler]:
    """The handlers of every path that reaches an engine under an app's key."""

    def bind(endpoint: Endpoint) -> Handler:
        def handle(call: Call) -> Coroutine[Any, Any, None]:
            identity = authenticate_header(call.headers.get(b"authorization"), context.keys, "app")
            return answer(context, identity, endpoint, call, call.header, call.body)

        return handle

    return {path: bind(endpoint) for path, endpoint in ENDPOINTS.items()}


async def answer_chat(
    context: Context, identity: Identity, call: Call, headers: Mapping[bytes, str], body: bytes
) -> None:
    """Answer a chat request that some page of ours made. Raises ApiError."""
    await answer(context, identity, CHAT, call, headers.get, body)


async def answer(
    context: Context, identity: Identity, endpoint: Endpoint, call: Call, header: Header, body: bytes
) -> None:
    """Answer one request. Raises ApiError."""
    counters = context.deployment.counters
    counters.requests += 1
    counters.num_in_flight += 1
    if call.watch is not None:
        call.watch.identity = identity
    try:
        if identity.limits is not None:
            now = time.time()
            is_admitted = context.limits.try_admit(identity, now)
            if is_admitted is None:
                await context.limits.admit(identity, now, call.log_fields)
            elif not is_admitted:
                raise context.limits.refusal(identity, now)
            call.extra = context.limits.header_lines(identity, now)
        exchange = open_exchange(context, identity, endpoint, call, header, body)
        ask = choose_ask(exchange, header) if endpoint.may_pair else None
        await (answer_single(exchange) if ask is None else answer_pair(exchange, ask))
    except CheckpointGone:
        counters.failed_requests += 1
        raise unavailable("The checkpoint was unloaded; ask again.") from None
    except ApiError as error:
        if error.status >= 500:
            counters.failed_requests += 1
        if error.status not in (503, 504):
            context.metrics.count_request("none", error.status)
        raise
    finally:
        counters.num_in_flight -= 1


def open_exchange(
    context: Context, identity: Identity, endpoint: Endpoint, call: Call, header: Header, body: bytes
) -> Exchange:
    """Read the request and choose who answers it. Raises ApiError."""
    request, span = parse_request(body, allow_remote_media=context.settings.gateway.allow_remote_media)
    endpoint.refuse(request)
    who = identify_user(request, header, identity.app, context.secrets)
    view = context.deployment.view
    alias = context.settings.policy
    known = _NOBODY if request.model == alias else served_checkpoints(context)
    route = choose_route(request.model, alias, who, identity, view, known)
    is_recorded = endpoint.is_recorded and context.completions.is_recording
    return Exchange(
        context, identity, call, endpoint.path, body, request, span, who, view, route, time.monotonic(), is_recorded
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


def find_obstacle(recorder: Recorder) -> str | None:
    """Why no comparison can be stored now, so that two answers would be made for nothing."""
    if recorder.is_failing:
        return "database"
    return "backlog" if recorder.is_backed_up else None


async def answer_single(exchange: Exchange) -> None:
    """One answer, passed through. Raises ApiError, CheckpointGone."""
    is_stream = exchange.request.is_stream
    is_metered = is_stream and exchange.identity.limits is not None
    for _ in range(_MAX_REROUTES):
        outcome = Outcome(exchange.route.arm)
        body = exchange.engine_body
        if is_metered:
            body = StreamMeter.ask_for_usage(exchange, body)
        try:
            answer = await ask_engine(exchange, exchange.route.checkpoint, body, is_stream=is_stream)
        except CheckpointGone:
            exchange.reroute()
            continue
        except ApiError as error:
            outcome.code = error.status
            note_outcome(exchange, outcome)
            raise
        is_events = answer.status == 200 and answer.content_type.startswith(EVENTS)  # also if all came in one read
        if answer.is_complete and not is_events:
            _pass_whole(exchange, answer, outcome)
        else:
            await _pass_stream(exchange, answer, outcome)
        return
    raise CheckpointGone(exchange.route.checkpoint)


def _pass_whole(exchange: Exchange, answer: EngineAnswer, outcome: Outcome) -> None:
    outcome.code = answer.status
    body = answer.body
    watch_bytes(outcome, body)
    note_outcome(exchange, outcome)
    route = exchange.route
    if answer.status != 200:
        exchange.call.send(*hide_refusal(answer, route.checkpoint, route.alias))
        return
    settle_answer(exchange, body)
    note_completion(exchange, body, is_stream=False)
    body = restore_model(body, route.checkpoint, route.alias)
    exchange.call.send(200, body, answer.content_type, exchange.own_headers)


async def _pass_stream(exchange: Exchange, answer: EngineAnswer, outcome: Outcome) -> None:
    """Each read of the engine's stream is one write to the client: no task runs in between."""
    call, checkpoint, alias = exchange.call, exchange.route.checkpoint, exchange.route.alias
    engine = exchange.context.deployment.engines[answer.engine]
    tail = EventTail()
    meter = None if exchange.identity.limits is None else StreamMeter(exchange)
    pieces: list[bytes] | None = [] if exchange.is_recorded else None
    outcome.first_byte_s = time.monotonic() - exchange.started
    outcome.code = CLIENT_GONE  # until the stream has ended
    code = 200

    def pass_on(data: bytes) -> None:
        nonlocal code
        engine.note_progress(time.monotonic())
        events = tail.feed(data)
        if not events:
            return
        if meter is not None and not (events := meter.filter(events)):
            return
        if pieces is not None:
            pieces.append(events)
        watch_bytes(outcome, events)
        if b'data: {"error"' in events:
            code = 500
            events = events.replace(checkpoint.encode(), alias.encode())
        outcome.num_tokens += events.count(b"data: ")
        call.write(restore_model(events, checkpoint, alias))

    call.on_pause, call.on_resume = answer.pause, answer.resume
    call.start(answer.content_type, exchange.own_headers)
    try:
        await answer.forward(pass_on)
        if tail.rest:
            call.write(restore_model(tail.rest, checkpoint, alias))
        outcome.code = code
    except (EngineInterrupted, ValueError):
        outcome.code = 502
        call.write(failure_events())
    finally:
        answer.close()
        if outcome.code >= 500:
            note_failure(exchange)
        note_outcome(exchange, outcome)
        if meter is not None:
            meter.settle(outcome.num_tokens)
        if pieces is not None:
            note_completion(exchange, b"".join(pieces), is_stream=True)
    call.end()


def note_completion(exchange: Exchange, answer: bytes, *, is_stream: bool) -> None:
    """Have an answer recorded, so that signals can be told of it; also what a client saw that left early."""
    if not exchange.is_recorded:
        return
    context = exchange.context
    who, route = exchange.who, exchange.route
    context.completions.note(
        (
            time.time(),
            None,
            exchange.identity.app,
            who.user,
            who.named_conversation,
            context.settings.policy,
            route.checkpoint,
            route.arm,
            exchange.body,
            answer,
            is_stream,
        )
    )

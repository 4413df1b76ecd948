"""One answer to one request, passed through.

As bytes: only the top-level `model` changes, in every event of a stream. Once the first byte of a stream is out, a failure
ends the stream with an error event.
"""

from __future__ import annotations

import time

from gateway.errors import ApiError, CheckpointGone, EngineInterrupted
from gateway.http.call import EVENTS
from gateway.http.connection import EngineAnswer
from gateway.http.sse import EventTail
from gateway.serving.attempts import LOST_TWICE, Begun, ask_engine, begin_asking, drop_asking, end_asking, hide_refusal
from gateway.serving.body import find_restorer
from gateway.serving.exchange import Exchange
from gateway.serving.metering import StreamMeter, must_meter, settle_answer
from gateway.serving.outcome import (
    CLIENT_GONE,
    Outcome,
    failure_events,
    record_answer,
    record_broken,
    record_failure,
    see_through,
)
from gateway.serving.shadow import book_and_shadow, count_tokens, offer_shadow

_MAX_REROUTES = 3


class Passage:
    """A whole answer on its shortest way: no coroutine waits for the engine.

    Most answers take it; what is not as usual `answer_single` goes on with.
    """

    __slots__ = ("_begun", "_exchange")

    def __init__(self, exchange: Exchange, begun: Begun) -> None:
        self._exchange = exchange
        self._begun = begun
        begun.answer.then(self._pass_on)

    @classmethod
    def begin(cls, exchange: Exchange) -> Passage | None:
        """Ask the engine in this very step; None if something must be waited for."""
        begun = begin_asking(exchange)
        return None if begun is None else cls(exchange, begun)

    def cancel(self) -> None:
        """The client has gone."""
        exchange = self._exchange
        exchange.call.running = None
        drop_asking(exchange, self._begun)
        record_answer(exchange, Outcome(exchange.route.arm, CLIENT_GONE))
        exchange.context.deployment.counters.num_in_flight -= 1

    def _pass_on(self) -> None:
        exchange, begun = self._exchange, self._begun
        call, context = exchange.call, exchange.context
        call.running = None
        if begun.answer.content_type.startswith(EVENTS) or not end_asking(exchange, begun):
            call.run(see_through(context, call, answer_single(exchange, begun)))
            return
        context.deployment.counters.num_in_flight -= 1
        try:
            outcome = Outcome(exchange.route.arm)
            _pass_whole(exchange, begun.answer, outcome)
            record_answer(exchange, outcome)
            offer_shadow(exchange, outcome)
        except Exception as error:  # it would end the engine's connection, and the client would wait for ever
            record_failure(context, call, error)
            call.fail(error)


async def answer_single(exchange: Exchange, begun: Begun | None = None) -> None:
    """One answer, passed through. `begun`: how far it is already. Raises ApiError, CheckpointGone."""
    for _ in range(_MAX_REROUTES):
        try:
            with book_and_shadow(exchange) as outcome:
                await _answer(exchange, outcome, begun)
            return
        except CheckpointGone:
            begun = None
            exchange.reroute()
        except ApiError as error:  # nothing has reached the client: users do not pay for a canary
            if error.status < 500 or error.code == LOST_TWICE or not exchange.fall_back():
                raise
            begun = None
    raise CheckpointGone(exchange.route.checkpoint)


async def _answer(exchange: Exchange, outcome: Outcome, begun: Begun | None) -> None:
    is_stream = exchange.request.is_stream
    body = exchange.engine_body
    if is_stream and must_meter(exchange):
        body = StreamMeter.ask_for_usage(exchange, body)
    answer = await ask_engine(exchange, exchange.route.checkpoint, body, is_stream=is_stream, begun=begun)
    is_events = answer.status == 200 and answer.content_type.startswith(EVENTS)  # also if all came in one read
    if answer.is_complete and not is_events:
        _pass_whole(exchange, answer, outcome)
    else:
        await _pass_stream(exchange, answer, outcome)


def _pass_whole(exchange: Exchange, answer: EngineAnswer, outcome: Outcome) -> None:
    """The answer goes out first, then it is booked: in one step, so nobody can ask about it in between."""
    body = answer.body
    route = exchange.route
    if answer.status != 200:
        outcome.code, refusal = hide_refusal(answer, route.checkpoint, route.alias)
        exchange.call.send(outcome.code, refusal)
        return
    restored = find_restorer(route.checkpoint, route.alias, shows_engine=exchange.identity.may("operator"))(body)
    exchange.call.send(200, restored, answer.content_type, exchange.own_headers)
    outcome.read_bytes(body)
    if exchange.view.shadow_share:
        outcome.num_used = count_tokens(body)
    settle_answer(exchange, body)
    note_completion(exchange, body, is_stream=False)


async def _pass_stream(exchange: Exchange, answer: EngineAnswer, outcome: Outcome) -> None:
    """Each read of the engine's stream is one write to the client: no task runs in between."""
    call, checkpoint, alias = exchange.call, exchange.route.checkpoint, exchange.route.alias
    note_progress = exchange.context.deployment.note_progress
    restore = find_restorer(checkpoint, alias, shows_engine=exchange.identity.may("operator"))
    tail = EventTail()
    meter = StreamMeter(exchange)
    pieces: list[bytes] | None = [] if exchange.is_recorded else None
    outcome.first_byte_s = time.monotonic() - exchange.started

    def pass_on(data: bytes) -> None:
        events = meter.filter(tail.feed(data))
        if events:
            if b'data: {"error"' in events:
                outcome.code = 500
                events = events.replace(checkpoint.encode(), alias.encode())
            call.write(restore(events))
            if pieces is not None:
                pieces.append(events)
            outcome.read_bytes(events)
            outcome.num_tokens += events.count(b"data: ")
        note_progress(answer.engine, time.monotonic())

    call.on_pause, call.on_resume = answer.pause, answer.resume
    call.start(answer.content_type, exchange.own_headers)
    try:
        await answer.forward(pass_on)
        if tail.rest:
            call.write(restore(tail.rest))
    except (EngineInterrupted, ValueError):
        outcome.code = 502
        call.write(failure_events())
    finally:
        answer.close()
        if outcome.code >= 500:
            record_broken(exchange)
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

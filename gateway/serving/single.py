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
from gateway.serving.attempts import Begun, ask_engine, begin_asking, drop_asking, end_asking, hide_refusal
from gateway.serving.body import find_restorer
from gateway.serving.exchange import (
    CLIENT_GONE,
    Exchange,
    Outcome,
    failure_events,
    note_failure,
    note_outcome,
    see_through,
    watch_bytes,
)
from gateway.serving.metering import StreamMeter, settle_answer

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
        self._exchange.call.running = None
        drop_asking(self._exchange, self._begun)
        self._exchange.context.deployment.counters.num_in_flight -= 1

    def _pass_on(self) -> None:
        exchange, begun = self._exchange, self._begun
        call, context = exchange.call, exchange.context
        call.running = None
        try:
            if begun.answer.content_type.startswith(EVENTS) or not end_asking(exchange, begun):
                call.run(see_through(context, answer_single(exchange, begun)))
                return
            context.deployment.counters.num_in_flight -= 1
            _pass_whole(exchange, begun.answer, Outcome(exchange.route.arm))
        except Exception as error:  # it would end the engine's connection, and the client would wait for ever
            call.fail(error)


async def answer_single(exchange: Exchange, begun: Begun | None = None) -> None:
    """One answer, passed through. `begun`: how far it is already. Raises ApiError, CheckpointGone."""
    is_stream = exchange.request.is_stream
    is_metered = is_stream and exchange.identity.limits is not None
    for _ in range(_MAX_REROUTES):
        outcome = Outcome(exchange.route.arm)
        body = exchange.engine_body
        if is_metered:
            body = StreamMeter.ask_for_usage(exchange, body)
        try:
            answer = await ask_engine(exchange, exchange.route.checkpoint, body, is_stream=is_stream, begun=begun)
        except CheckpointGone:
            begun = None
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
    """The answer goes out first, then it is booked: in one step, so nobody can ask about it in between."""
    outcome.code = answer.status
    body = answer.body
    route = exchange.route
    if answer.status != 200:
        exchange.call.send(*hide_refusal(answer, route.checkpoint, route.alias))
        note_outcome(exchange, outcome)
        return
    restored = find_restorer(route.checkpoint, route.alias, shows_engine=exchange.identity.may("operator"))(body)
    exchange.call.send(200, restored, answer.content_type, exchange.own_headers)
    watch_bytes(outcome, body)
    note_outcome(exchange, outcome)
    settle_answer(exchange, body)
    note_completion(exchange, body, is_stream=False)


async def _pass_stream(exchange: Exchange, answer: EngineAnswer, outcome: Outcome) -> None:
    """Each read of the engine's stream is one write to the client: no task runs in between."""
    call, checkpoint, alias = exchange.call, exchange.route.checkpoint, exchange.route.alias
    note_progress = exchange.context.deployment.note_progress
    restore = find_restorer(checkpoint, alias, shows_engine=exchange.identity.may("operator"))
    tail = EventTail()
    meter = None if exchange.identity.limits is None else StreamMeter(exchange)
    pieces: list[bytes] | None = [] if exchange.is_recorded else None
    outcome.first_byte_s = time.monotonic() - exchange.started
    outcome.code = CLIENT_GONE  # until the stream has ended
    code = 200

    def pass_on(data: bytes) -> None:
        nonlocal code
        events = tail.feed(data)
        if meter is not None:
            events = meter.filter(events)
        if events:
            if b'data: {"error"' in events:
                code = 500
                events = events.replace(checkpoint.encode(), alias.encode())
            call.write(restore(events))
            if pieces is not None:
                pieces.append(events)
            watch_bytes(outcome, events)
            outcome.num_tokens += events.count(b"data: ")
        note_progress(answer.engine, time.monotonic())

    call.on_pause, call.on_resume = answer.pause, answer.resume
    call.start(answer.content_type, exchange.own_headers)
    try:
        await answer.forward(pass_on)
        if tail.rest:
            call.write(restore(tail.rest))
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

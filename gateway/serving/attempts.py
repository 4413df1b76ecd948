"""Asks an engine, and asks again while nothing has reached the client.

Asks again when an engine refuses, restarts, forgot the adapter or died early: at most `connect_wait_s` in all, and half
a pair for three seconds beside the other half. After the first byte of a stream nothing is repeated. An answer that is
not streamed is read to its end here, so that losing the engine halfway costs the client only time. A request over which
two engines went away is asked of no third.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from gateway.engines.engine import EngineState
from gateway.errors import (
    ApiError,
    CheckpointGone,
    EngineInterrupted,
    EngineLost,
    EngineUnavailable,
    error_body,
    unavailable,
)
from gateway.http.connection import EngineAnswer
from gateway.http.record import Attempt, AttemptRequest
from gateway.serving.exchange import Exchange

logger = logging.getLogger("gateway.attempts")

LOST_TWICE = "engine_lost_twice"  # the code of a request over which two engines went away
_MAX_INTERNAL_ERRORS = 5  # an engine whose core has died answers 500 for a while; a bad input does so for ever
_ENGINE_DIED = b"EngineCore"  # what vLLM's server answers, with 500, once the process that generates has died
_RESTARTING = frozenset({502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
_WAIT_BESIDE_OTHER_S = 3.0  # a user waits for the answer that is there
_MAX_LOST_ENGINES = 2
_SAME_LOSS_S = 5.0  # an engine that dies answers 500 for a while, and two halves of a pair lose it together


class Begun(NamedTuple):
    """A request that was sent to an engine, and counts as in flight there."""

    engine: EngineState
    answer: EngineAnswer


def begin_asking(exchange: Exchange) -> Begun | None:
    """Ask for a whole answer in this very step, by the route; None if something must be waited for."""
    context, checkpoint = exchange.context, exchange.route.checkpoint
    try:
        engine = _pick_engine(exchange, checkpoint)
    except EngineUnavailable:
        return None
    answer = context.upstream.begin(
        engine.url, exchange.endpoint.path, exchange.engine_body, headers=_own_lines(exchange)
    )
    if answer is None:
        return None
    context.deployment.begin(checkpoint, engine)
    return Begun(engine, answer)


def end_asking(exchange: Exchange, begun: Begun) -> bool:
    """Book a whole answer that was begun; False, with nothing booked, if there is more to say about it than that."""
    engine, answer = begun
    if answer.status != 200 or answer.error is not None or _find_problem(answer) is not None:
        return False
    deployment, checkpoint = exchange.context.deployment, exchange.route.checkpoint
    engine.note_success(time.monotonic())
    deployment.end(checkpoint, engine)
    deployment.note_answer(checkpoint)
    return True


def drop_asking(exchange: Exchange, begun: Begun) -> None:
    """The answer is not wanted any more."""
    begun.answer.close()
    exchange.context.deployment.end(exchange.route.checkpoint, begun.engine)


async def ask_engine(
    exchange: Exchange,
    checkpoint: str,
    body: bytes,
    *,
    is_stream: bool,
    suffix: str = "",
    begun: Begun | None = None,
    has_other: Callable[[], bool] = lambda: False,
) -> EngineAnswer:
    """A complete answer, or a stream whose first bytes have come, which the caller closes.

    `suffix` tells the two requests of a pair apart; `has_other`: whether the other one has its answer, or begins to. A canary that
    another checkpoint can answer for is not asked again after an error of its own.
    Raises ApiError 503 or 504, CheckpointGone. What an engine failed at stands in `exchange.failed_on`.
    """
    context = exchange.context
    headers = _own_lines(exchange, suffix)
    num_internal = 0
    pause_s = _FIRST_PAUSE_S
    while True:
        first, begun = begun, None
        try:
            answer = await _ask_once(exchange, checkpoint, body, headers, is_stream, first)
        except TimeoutError:
            raise ApiError(504, "The engine did not answer in time.", code="timeout") from None
        except (EngineUnavailable, EngineInterrupted) as error:
            problem = str(error)
        else:
            found = _find_problem(answer)
            if answer.status >= 500 or found == "internal":
                exchange.failed_on += (checkpoint,)
                if not suffix and exchange.fallback is not None:
                    answer.close()
                    raise ApiError(
                        503, "The engine failed to answer.", code="engine_error", headers={"retry-after": "1"}
                    )
            if found == "internal":
                num_internal += 1
            if found is None or num_internal > _MAX_INTERNAL_ERRORS:
                context.deployment.note_answer(checkpoint)
                return answer
            problem = found
            answer.close()
            if problem == "unknown checkpoint" and not context.swap.is_expected(checkpoint):
                raise CheckpointGone(checkpoint)
        now = time.monotonic()
        wait_s = context.settings.gateway.connect_wait_s
        if now + pause_s > exchange.started + (min(wait_s, _WAIT_BESIDE_OTHER_S) if has_other() else wait_s):
            logger.error("gave up on %s: %s", checkpoint, problem, extra=exchange.call.log_fields)
            raise unavailable("No engine can answer now.", retry_after_s=5)
        context.metrics.retries.inc()
        context.swap.wake()
        context.deployment.hold(checkpoint)  # it may not be unloaded in the pause
        try:
            await asyncio.sleep(pause_s)
        finally:
            context.deployment.release(checkpoint)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)


async def _ask_once(
    exchange: Exchange, checkpoint: str, body: bytes, headers: bytes, is_stream: bool, begun: Begun | None
) -> EngineAnswer:
    """One request to one engine; both count as in flight until the answer is complete or closed."""
    context = exchange.context
    deployment = context.deployment
    if begun is None:
        engine, first = _pick_engine(exchange, checkpoint), None
        deployment.begin(checkpoint, engine)
    else:
        engine, first = begun
    attempt = _begin_attempt(exchange, engine.url, checkpoint)
    if attempt is not None:
        headers += attempt.headers
    answer: EngineAnswer | None = None
    try:
        answer = await context.upstream.post(
            engine.url, exchange.endpoint.path, body, is_stream=is_stream, headers=headers, begun=first
        )
        if answer.status >= 500:
            engine.note_failure(time.monotonic())
            if _ENGINE_DIED in answer.body:
                _note_lost(exchange, engine)
        elif answer.status == 404 and _find_problem(answer):
            engine.note_missing(checkpoint)
        else:
            engine.note_success(time.monotonic())
        return answer
    except (EngineUnavailable, EngineInterrupted) as error:
        engine.note_failure(time.monotonic(), is_lost=True)
        if isinstance(error, EngineLost | EngineInterrupted):
            exchange.failed_on += (checkpoint,)
            _note_lost(exchange, engine)
        raise
    except TimeoutError:
        engine.note_failure(time.monotonic())
        exchange.failed_on += (checkpoint,)
        raise
    finally:
        if answer is None or answer.is_complete:
            deployment.end(checkpoint, engine)
            if attempt is not None:
                attempt.end(answer)
        else:
            answer.on_close = lambda: deployment.end(checkpoint, engine)
            answer.tell_pauses(engine.note_paused)
            if attempt is not None:
                attempt.follow(answer)


def _begin_attempt(exchange: Exchange, engine: str, checkpoint: str) -> Attempt | None:
    """Note in the request's record whom it asks; the attempt's trace, if there is one."""
    record = exchange.call.record
    if record is None:
        return None
    request, route = exchange.request, exchange.route
    record.model, record.arm, record.checkpoint = request.model, route.arm, route.checkpoint
    if record.trace is None:
        return None
    path, arm = exchange.endpoint.path.decode(), "canary" if checkpoint == exchange.view.canary else "stable"
    return record.trace.begin_attempt(
        AttemptRequest(
            path, engine, checkpoint, arm, route.alias, request.model, request.is_stream, request.token_limit,
            request.temperature,
        )
    )  # fmt: skip


def _note_lost(exchange: Exchange, engine: EngineState) -> None:
    """An engine went away over this request. Raises ApiError 503 at the second: it may be the request that kills them."""
    now = time.monotonic()
    if not any(url == engine.url and now - at < _SAME_LOSS_S for url, at in exchange.lost_engines):
        exchange.lost_engines += ((engine.url, now),)
        if len(exchange.lost_engines) == _MAX_LOST_ENGINES:
            exchange.context.metrics.lost_twice.inc()
            digest, fields = hashlib.sha256(exchange.body).hexdigest(), exchange.call.log_fields
            logger.error("two engines were lost over one request (SHA-256 %s); it is stopped", digest, extra=fields)
    if len(exchange.lost_engines) < _MAX_LOST_ENGINES:
        return
    headers = {"x-should-retry": "false"}  # OpenAI's clients would ask again
    raise ApiError(503, "Two engines were lost while answering this.", code=LOST_TWICE, headers=headers)


def _pick_engine(exchange: Exchange, checkpoint: str) -> EngineState:
    deployment = exchange.context.deployment
    return deployment.pick_engine(checkpoint, "" if deployment.is_single else exchange.who.conversation)


def _own_lines(exchange: Exchange, suffix: str = "") -> bytes:
    return b"x-request-id: %b%b\r\n" % (exchange.call.own_id.encode(), suffix.encode())


def status_for_client(status: int) -> int:
    """The status that a client gets for an engine's: refusals are passed on, anything else but 200 is our failure."""
    is_refusal = 400 <= status < 500 and status not in (401, 403)  # which say something of us
    return status if status == 200 or is_refusal else 503


def hide_refusal(answer: EngineAnswer, checkpoint: str, alias: str) -> tuple[int, bytes]:
    """The engine's refusal of a request, without the checkpoint's name. Raises ApiError 503 if it is none."""
    if status_for_client(answer.status) != answer.status:
        raise ApiError(503, "The engine failed to answer.", code="engine_error", headers={"retry-after": "1"})
    body = answer.body.replace(checkpoint.encode(), alias.encode())
    if not body.startswith(b'{"error"'):
        body = error_body(answer.status, "The engine refused the request.")
    return answer.status, body


def _find_problem(answer: EngineAnswer) -> str | None:
    """What makes an answer worth asking for again."""
    status = answer.status
    if status == 200:
        return "internal" if answer.body.startswith((b'data: {"error"', b'{"error"')) else None
    if status == 404 and b"does not exist" in answer.body:
        return "unknown checkpoint"
    if status in _RESTARTING:
        return f"status {status}"
    return "internal" if status == 500 else None

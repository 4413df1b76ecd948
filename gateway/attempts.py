"""Asks an engine, and asks again while nothing has reached the client.

Asks again when an engine refuses, restarts, forgot the adapter or died early: at most `connect_wait_s` in all. After
the first byte of a stream nothing is repeated. An answer that is not streamed is read to its end here, so that losing
the engine halfway costs the client only time.
"""

from __future__ import annotations

import asyncio
import logging
import time

from gateway.errors import ApiError, CheckpointGone, EngineInterrupted, EngineUnavailable, error_body, unavailable
from gateway.exchange import Exchange
from gateway.http.connection import EngineAnswer

logger = logging.getLogger("gateway.attempts")

_MAX_INTERNAL_ERRORS = 5  # an engine whose core has died answers 500 for a while; a bad input does so for ever
_RESTARTING = frozenset({502, 503, 504})
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0


async def ask_engine(
    exchange: Exchange, checkpoint: str, body: bytes, *, is_stream: bool, suffix: str = ""
) -> EngineAnswer:
    """A complete answer, or a stream whose first bytes have come, which the caller closes.

    `suffix` tells the two requests of a pair apart. Raises ApiError 503 or 504, CheckpointGone.
    """
    context = exchange.context
    headers = b"x-request-id: %b%b\r\n" % (exchange.call.own_id.encode(), suffix.encode())
    deadline = 0.0
    num_internal = 0
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            answer = await _ask_once(exchange, checkpoint, body, headers, is_stream)
        except TimeoutError:
            raise ApiError(504, "The engine did not answer in time.", code="timeout") from None
        except (EngineUnavailable, EngineInterrupted) as error:
            problem = str(error)
        else:
            found = _find_problem(answer)
            if found == "internal":
                num_internal += 1
            if found is None or num_internal > _MAX_INTERNAL_ERRORS:
                context.deployment.note_answer(checkpoint)
                return answer
            problem = found
            answer.close()
            if problem == "unknown checkpoint" and not context.swap.wants(checkpoint):
                raise CheckpointGone(checkpoint)
        now = time.monotonic()
        deadline = deadline or exchange.started + context.settings.gateway.connect_wait_s
        if now + pause_s > deadline:
            logger.error("gave up on %s: %s", checkpoint, problem, extra=exchange.call.log_fields)
            raise unavailable("No engine can answer now.", retry_after_s=5)
        context.metrics.retries.inc()
        context.swap.nudge()
        context.deployment.hold(checkpoint)  # it may not be unloaded in the pause
        try:
            await asyncio.sleep(pause_s)
        finally:
            context.deployment.release(checkpoint)
        pause_s = min(_LONGEST_PAUSE_S, pause_s * 1.5)


async def _ask_once(exchange: Exchange, checkpoint: str, body: bytes, headers: bytes, is_stream: bool) -> EngineAnswer:
    """One request to one engine; both count as in flight until the answer is complete or closed."""
    context = exchange.context
    deployment = context.deployment
    engine = deployment.pick_engine(checkpoint, "" if deployment.is_single else exchange.who.conversation)
    deployment.begin(checkpoint, engine)
    watch = exchange.call.watch
    attempt = None if watch is None else watch.begin_attempt(exchange, engine.url, checkpoint)
    if attempt is not None:
        headers += attempt.headers
    answer: EngineAnswer | None = None
    try:
        answer = await context.upstream.post(engine.url, exchange.path, body, is_stream=is_stream, headers=headers)
        if answer.status >= 500:
            engine.note_failure(time.monotonic())
        elif answer.status == 404 and _find_problem(answer):
            engine.note_missing(checkpoint)
        else:
            engine.note_success(time.monotonic())
        return answer
    except (EngineUnavailable, EngineInterrupted):
        engine.note_failure(time.monotonic(), is_lost=True)
        raise
    except TimeoutError:
        engine.note_failure(time.monotonic())
        raise
    finally:
        if answer is None or answer.is_complete:
            deployment.end(checkpoint, engine)
            if attempt is not None:
                attempt.end(answer)
        else:
            answer.on_close = lambda: deployment.end(checkpoint, engine)
            if attempt is not None:
                attempt.follow(answer)


def hide_refusal(answer: EngineAnswer, checkpoint: str, alias: str) -> tuple[int, bytes]:
    """The engine's refusal of a request, without the checkpoint's name. Raises ApiError 503 if the engine failed."""
    if answer.status >= 500 or answer.status in (401, 403):
        raise ApiError(503, "The engine failed to answer.", code="engine_error", headers={"retry-after": "1"})
    body = answer.body.replace(checkpoint.encode(), alias.encode())
    if not body.startswith(b'{"error"'):
        body = error_body(answer.status, "The engine refused the request.")
    return answer.status, body


def _find_problem(answer: EngineAnswer) -> str | None:
    """What makes an answer worth asking for again."""
    if answer.status == 404 and b"does not exist" in answer.body:
        return "unknown checkpoint"
    if answer.status in _RESTARTING:
        return f"status {answer.status}"
    if answer.status == 500 or (answer.status == 200 and answer.body.startswith((b'data: {"error"', b'{"error"'))):
        return "internal"
    return None

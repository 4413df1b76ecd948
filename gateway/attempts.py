"""Asks an engine, and asks again while nothing has reached the client.

Asks again when an engine refuses, restarts, forgot the adapter or died early: at most `connect_wait_s` in all. After
the first byte of a stream nothing is repeated. An answer that is not streamed is read to its end here, so that losing
the engine halfway costs the client only time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import ExitStack
from dataclasses import dataclass

from starlette.responses import Response

from gateway.context import Context
from gateway.errors import (
    ApiError,
    CheckpointGone,
    EngineInterrupted,
    EngineUnavailable,
    error_body,
    unavailable,
)
from gateway.upstream import EngineAnswer

logger = logging.getLogger("gateway.attempts")

_MAX_INTERNAL_ERRORS = 5  # an engine whose core has died answers 500 for a while; a bad input does so for ever
_RESTARTING = frozenset({502, 503, 504})


@dataclass(frozen=True)
class WholeAnswer:
    """An answer that was not streamed."""

    engine: str
    status: int
    body: bytes


async def open_answer(context: Context, checkpoint: str, path: str, body: bytes) -> EngineAnswer | WholeAnswer:
    """A stream whose first bytes have come, which the caller closes, or the engine's refusal.

    Raises ApiError 503 or 504, CheckpointGone.
    """
    answer, data = await _ask(context, checkpoint, path, body, is_stream=True)
    if answer.status == 200:
        return answer
    answer.close()
    return WholeAnswer(answer.engine, answer.status, data)


async def fetch_answer(context: Context, checkpoint: str, path: str, body: bytes) -> WholeAnswer:
    """An answer read to its end. Raises ApiError 503 or 504, CheckpointGone."""
    answer, data = await _ask(context, checkpoint, path, body, is_stream=False)
    answer.close()
    return WholeAnswer(answer.engine, answer.status, data)


def relay_refusal(answer: WholeAnswer, checkpoint: str, alias: str) -> Response:
    """The engine's refusal of a request, without the checkpoint's name. Raises ApiError 503 if the engine failed."""
    if answer.status >= 500 or answer.status in (401, 403):
        raise ApiError(503, "The engine failed to answer.", code="engine_error", headers={"retry-after": "1"})
    body = answer.body.replace(checkpoint.encode(), alias.encode())
    if not body.startswith(b'{"error"'):
        body = error_body(answer.status, "The engine refused the request.")
    return Response(body, status_code=answer.status, media_type="application/json")


async def _ask(
    context: Context, checkpoint: str, path: str, body: bytes, *, is_stream: bool
) -> tuple[EngineAnswer, bytes]:
    deadline = time.monotonic() + context.settings.gateway.connect_wait_s
    num_internal = 0
    pause_s = 0.1
    while True:
        with ExitStack() as stack:
            engine = context.deployment.pick_engine(checkpoint)
            stack.enter_context(context.deployment.track(checkpoint, engine))
            try:
                answer = await context.upstream.post(engine, path, body, is_stream=is_stream)
                stack.callback(answer.close)
                is_streaming = is_stream and answer.status == 200
                data = b"" if is_streaming else await answer.read()
                problem = _find_problem(answer.status, answer.first if is_streaming else data)
            except TimeoutError:
                raise ApiError(504, "The engine did not answer in time.", code="timeout") from None
            except (EngineUnavailable, EngineInterrupted) as error:
                problem = str(error)
                context.deployment.engines[engine].up = False
            else:
                if problem == "internal":
                    num_internal += 1
                if problem is None or num_internal > _MAX_INTERNAL_ERRORS:
                    context.deployment.note_answer(checkpoint)
                    answer.on_close = stack.pop_all().close
                    return answer, data
                if problem == "unknown checkpoint" and not context.swap.wants(checkpoint):
                    raise CheckpointGone(checkpoint)
        if time.monotonic() + pause_s > deadline:
            logger.error("gave up on %s: %s", checkpoint, problem)
            raise unavailable("No engine can answer now.", retry_after_s=5)
        context.metrics.retries.inc()
        context.swap.nudge()
        await asyncio.sleep(pause_s)
        pause_s = min(1.0, pause_s * 1.5)


def _find_problem(status: int, data: bytes) -> str | None:
    """What makes an answer worth asking for again; `data` is its body, or the first bytes of a stream."""
    if status == 404:
        return "unknown checkpoint"
    if status in _RESTARTING:
        return f"status {status}"
    if status == 500 or (status == 200 and data.startswith((b'data: {"error"', b'{"error"'))):
        return "internal"
    return None

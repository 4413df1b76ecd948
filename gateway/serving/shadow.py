"""Asks the canary what stable has just answered, and throws the answer away: before it serves anybody, it is looked at.

After stable's answer, so that nobody waits for it; so many at once as the rollout allows, and none for a user of whom one is known.
Both answers are observed as a pair. Not retried, not recorded, not counted as used; what says nothing of the canary (no engine could
be asked, the client's own mistake) is not observed.
"""

from __future__ import annotations

import contextlib
import random
import re
import time
import uuid
from collections.abc import Iterator
from functools import partial

import msgspec

from gateway.engines.deployment import Arm
from gateway.errors import CheckpointGone, EngineInterrupted, EngineLost, EngineUnavailable
from gateway.http.connection import EngineAnswer
from gateway.http.sse import EventTail
from gateway.serving.exchange import Exchange
from gateway.serving.outcome import (
    Outcome,
    book_answer,
    counts_comparisons,
    has_failed,
    is_telling,
    measure_length,
    time_tokens,
)

STABLE: Arm = "stable"
CANARY: Arm = "canary"
_rng = random.SystemRandom()
_USED = re.compile(rb'"completion_tokens": ?(\d+)')
_NUM_LAST_BYTES = 1024  # where a whole answer says how many tokens it has


class Reading(msgspec.Struct, frozen=True):
    """What the sensors saw of one answer."""

    error: bool
    truncated: bool | None
    refused: bool | None
    first_token_s: float | None
    token_s: float | None
    length: float | None


@contextlib.contextmanager
def book_and_shadow(exchange: Exchange) -> Iterator[Outcome]:
    """`book_answer`, and then `offer_shadow`."""
    outcome = None
    try:
        with book_answer(exchange) as outcome:
            yield outcome
    except CheckpointGone:  # no arm has answered
        outcome = None
        raise
    finally:
        if outcome is not None:
            offer_shadow(exchange, outcome)


def count_tokens(answer: bytes) -> int:
    """The tokens of a whole answer, as it says at its end; 0 if it does not."""
    found = _USED.search(answer, max(0, len(answer) - _NUM_LAST_BYTES))
    return int(found[1]) if found else 0


def offer_shadow(exchange: Exchange, outcome: Outcome) -> None:
    """Let the canary answer a request that stable has answered so, if it is one of those to be shadowed."""
    view, route = exchange.view, exchange.route
    if not view.shadow_share or view.canary is None or route.arm != STABLE or route.is_pinned:
        return
    if not exchange.endpoint.generates or not is_telling(exchange, outcome) or _rng.random() >= view.shadow_share:
        return
    unit = uuid.uuid4().hex if counts_comparisons(exchange) else exchange.who.unit
    if exchange.context.controller.observations.is_settled(view.observed or "", unit):
        return
    reading = _read(exchange, outcome, exchange.started, error=has_failed(exchange, outcome))
    exchange.context.shadows.start(partial(_shadow, exchange, view.canary, unit, reading), view.max_shadows)


def _read(exchange: Exchange, outcome: Outcome, started: float, *, error: bool) -> Reading:
    return Reading(
        error, outcome.sense_truncation(), outcome.sense_refusal(), outcome.first_byte_s, time_tokens(outcome, started),
        measure_length(exchange, outcome),
    )  # fmt: skip


async def _shadow(exchange: Exchange, checkpoint: str, unit: str, stable: Reading) -> None:
    started = time.monotonic()
    outcome = await _ask(exchange, checkpoint, started)
    if outcome is None:
        return
    canary = _read(exchange, outcome, started, error=outcome.code >= 500)
    for arm, reading in ((STABLE, stable), (CANARY, canary)):
        exchange.context.controller.observations.record(
            exchange.view.observed, unit, arm, reading.error, reading.truncated, reading.refused, reading.first_token_s,
            latency_token_s=reading.token_s, length=reading.length, answered="duel", weight=0.5,
        )  # fmt: skip


async def _ask(exchange: Exchange, checkpoint: str, started: float) -> Outcome | None:
    """How the canary's answer ended; None if that says nothing of it."""
    context, outcome = exchange.context, Outcome(CANARY)
    try:
        engine = context.deployment.pick_engine(checkpoint)
    except EngineUnavailable:
        return None
    headers = b"x-request-id: %b-shadow\r\n" % exchange.call.own_id.encode()
    answer: EngineAnswer | None = None
    context.deployment.begin(checkpoint, engine)
    try:
        answer = await context.upstream.post(
            engine.url, exchange.endpoint.path, exchange.body_for(checkpoint), is_stream=exchange.request.is_stream,
            headers=headers,
        )  # fmt: skip
        outcome.code = answer.status
        if answer.status == 200 and answer.is_complete and not exchange.request.is_stream:
            outcome.read_bytes(answer.body)
            outcome.num_used = count_tokens(answer.body)
        elif answer.status == 200:
            outcome.first_byte_s = time.monotonic() - started
            await _read_stream(answer, outcome)
    except (EngineLost, EngineInterrupted, TimeoutError, ValueError):
        outcome.code = 502
    except EngineUnavailable:
        return None
    finally:
        if answer is not None:
            answer.close()
        context.deployment.end(checkpoint, engine)
    return outcome if outcome.code == 200 or outcome.code >= 500 else None


async def _read_stream(answer: EngineAnswer, outcome: Outcome) -> None:
    tail = EventTail()

    def read(data: bytes) -> None:
        events = tail.feed(data)
        outcome.read_bytes(events)
        outcome.num_tokens += events.count(b"data: ")
        if b'data: {"error"' in events:
            outcome.code = 500

    await answer.forward(read)

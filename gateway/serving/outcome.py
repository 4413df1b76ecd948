"""Books how every answer ended, on every path: the one place that counts answers and tells the guardrails of them.

An answer is booked once, under the arm that gave it and the status that its client got. A request that no arm answered
(refused, unreadable, over its limits) is booked under "none". The guardrails see a known user's first generating request,
and an engine's failure even where a second attempt hid it from the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
import uuid
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any

import msgspec

from feedback.refusals import refuses
from gateway.engines.deployment import Arm
from gateway.errors import ApiError, CheckpointGone, error_body, unavailable
from gateway.http.call import Call, Handler
from gateway.http.sse import DONE, encode_event
from gateway.rollout.observations import Observations
from gateway.serving.context import Context
from gateway.serving.exchange import Exchange
from gateway.serving.opening import NUM_BYTES, read_opening
from gateway.tables.rows import Answered

_USUAL_LIMIT = 1024  # tokens, where the app sets none
_END, _REFUSAL = (
    re.compile(rb'"finish_reason": ?"(\w*)"'),
    re.compile(rb'"refusal": ?"'),
)  # not every engine writes JSON densely
CLIENT_GONE = 499  # nginx's code for a client that left: not our failure


class Outcome(msgspec.Struct):
    """How one answer ended. `code`: what the client got; a stream that broke has 502, one that was left 499."""

    arm: Arm
    code: int = 200
    is_truncated: bool = False
    is_refused: bool = False
    is_finished: bool = False
    first_byte_s: float | None = None
    num_tokens: int = 0
    num_used: int = 0  # tokens of a whole answer as it says itself, where somebody wants to know
    start: list[bytes] = []  # the answer's first bytes, as they came
    num_kept: int = 0

    def read_bytes(self, data: bytes) -> None:
        """Note what an answer's bytes say of its end; inside strings the quotes of these patterns are escaped."""
        for end in _END.findall(data):
            self.is_finished = True
            self.is_truncated |= end == b"length"
            self.is_refused |= end == b"content_filter"
        if _REFUSAL.search(data):
            self.is_refused = True
        if self.num_kept < NUM_BYTES:
            self.start.append(data[: NUM_BYTES - self.num_kept])
            self.num_kept += len(data)

    def sense_truncation(self) -> bool | None:
        """Whether the answer was cut off; None if it does not say how it ended."""
        return self.is_truncated if self.is_finished else None

    def sense_refusal(self) -> bool | None:
        """Whether the answer refuses, by its engine's field or by its first words; None if it has neither."""
        if self.is_refused:
            return True
        opening = read_opening(b"".join(self.start))
        return None if opening is None else refuses(opening)


def failure_events() -> bytes:
    """What ends a stream whose engine went away."""
    return encode_event(error_body(502, "The engine stopped in the middle of its answer.", code="engine_lost")) + DONE


# Requests: what no arm answered


def count_refusals(context: Context, handler: Handler) -> Handler:
    """A handler whose requests count as in flight until they are answered, and whose refusals are booked."""

    def handle(call: Call) -> Coroutine[Any, Any, None] | None:
        counters = context.deployment.counters
        counters.requests += 1
        counters.num_in_flight += 1
        try:
            work = handler(call)
        except Exception as error:
            record_failure(context, call, error)
            counters.num_in_flight -= 1
            raise
        return None if work is None else see_through(context, call, work)

    return handle


async def see_through(context: Context, call: Call, work: Coroutine[Any, Any, None]) -> None:
    """Answer a request that counts as in flight until that is done. Raises ApiError."""
    try:
        await work
    except CheckpointGone as error:
        record_failure(context, call, error)
        raise unavailable("The checkpoint was unloaded; ask again.") from None
    except Exception as error:
        record_failure(context, call, error)
        raise
    finally:
        context.deployment.counters.num_in_flight -= 1


def record_failure(context: Context, call: Call, error: Exception) -> None:
    """Book a request that ends in an error of ours, unless its answer has been booked already."""
    status = error.status if isinstance(error, ApiError) else 503 if isinstance(error, CheckpointGone) else 500
    if status >= 500:
        context.deployment.counters.failed_requests += 1
    if not call.is_booked:
        record_unread(context, status)


def record_unread(context: Context, status: int) -> None:
    """Book a request that was refused with `status` before an arm was asked, or before it was read whole."""
    context.metrics.count_request("none", status)


# Answers


@contextlib.contextmanager
def book_answer(exchange: Exchange) -> Iterator[Outcome]:
    """One answer by the route's arm, booked however the block ends. CheckpointGone books nothing: no arm answered."""
    outcome = Outcome(exchange.route.arm)
    try:
        yield outcome
    except CheckpointGone:
        raise
    except ApiError as error:
        outcome.code = error.status
        record_answer(exchange, outcome)
        raise
    except asyncio.CancelledError:
        outcome.code = CLIENT_GONE
        record_answer(exchange, outcome)
        raise
    except BaseException:
        outcome.code = 500
        record_answer(exchange, outcome)
        raise
    record_answer(exchange, outcome)


def record_answer(exchange: Exchange, outcome: Outcome) -> None:
    """Book one finished answer to a request."""
    _count(exchange, outcome)
    observations = _find_observations(exchange)
    if counts_comparisons(exchange):
        return  # they are the units there: who is answered once is none
    if observations is None or observations.is_settled(exchange.view.observed or "", exchange.who.user):
        return
    if is_telling(exchange, outcome):
        _observe(observations, exchange, exchange.who.user, outcome, "single")


def record_pair(exchange: Exchange, outcomes: Sequence[Outcome], *, is_duel: bool) -> None:
    """Book the finished answers to a request that is answered twice, candidates that are not shown among them, in one step.

    The guardrails see both halves of a duel or neither, for one says nothing of their ratio; else the first that tells.
    A candidate of a duel that failed has lost it.
    """
    for outcome in outcomes:
        _count(exchange, outcome)
    observations = _find_observations(exchange)
    telling = [outcome for outcome in outcomes if is_telling(exchange, outcome)]
    if observations is None:
        return
    unit = uuid.uuid4().hex if exchange.who.user and counts_comparisons(exchange) else exchange.who.user
    if not is_duel:
        for outcome in telling[:1]:
            _observe(observations, exchange, unit, outcome, "explore")
    elif len(telling) == len(outcomes):
        for outcome in telling:
            _observe(observations, exchange, unit, outcome, "duel")
        if failed := [exchange.view.trial_arm(outcome.arm) for outcome in telling if outcome.code >= 500]:
            observations.record_failed_duel(exchange.view.rollout, exchange.who.user, failed)
            exchange.context.metrics.count_duel(
                "tie" if len(failed) == 2 else "loss" if "canary" in failed else "win", "none"
            )


def record_broken(exchange: Exchange) -> None:
    """Book a stream that its client got a part of, and no end."""
    exchange.context.deployment.counters.failed_requests += 1
    if exchange.call.record is not None:
        exchange.call.record.is_broken = True


def _count(exchange: Exchange, outcome: Outcome) -> None:
    exchange.call.is_booked = True
    metrics = exchange.context.metrics
    metrics.count_request(outcome.arm, outcome.code)
    arm = metrics.arms[outcome.arm]
    if outcome.is_refused:
        arm.refusals.inc()
    if outcome.code == 200 and exchange.endpoint.generates and metrics.may_read(time.monotonic()):
        is_refused = outcome.sense_refusal()
        if is_refused is not None:
            metrics.count_refusal_read(outcome.arm, is_refused=is_refused)
    if outcome.first_byte_s is not None:
        arm.first_token.observe(outcome.first_byte_s)
        if outcome.num_tokens > 1:
            arm.per_token.observe(time_tokens(outcome, exchange.started) or 0.0)
    if outcome.num_tokens:
        arm.output_tokens.observe(outcome.num_tokens)


def time_tokens(outcome: Outcome, started: float) -> float | None:
    """Seconds from one token to the next of a stream asked for at `started` (monotonic) that ends now.

    None of an answer that was no stream, or had one token.
    """
    if outcome.first_byte_s is None or outcome.num_tokens < 2:
        return None
    rest_s = time.monotonic() - started - outcome.first_byte_s
    return max(0.0, rest_s) / (outcome.num_tokens - 1)


def measure_length(exchange: Exchange, outcome: Outcome) -> float | None:
    """An answer's tokens as a share of its limit, 1 at most; None if they were not counted."""
    limit, num = exchange.request.token_limit or _USUAL_LIMIT, outcome.num_tokens or outcome.num_used
    return min(1.0, num / limit) if num else None


def _find_observations(exchange: Exchange) -> Observations | None:
    """Where the rollout's first requests are noted; None if this request is not part of one."""
    is_outside = exchange.view.rollout is None or exchange.route.is_pinned or not exchange.endpoint.generates
    return None if is_outside else exchange.context.controller.observations


def is_telling(exchange: Exchange, outcome: Outcome) -> bool:
    """Whether an answer says anything of its checkpoint: neither the client's mistake nor its leaving does."""
    return outcome.code == 200 or has_failed(exchange, outcome)


def has_failed(exchange: Exchange, outcome: Outcome) -> bool:
    """Whether an engine failed at it, even if the client got an answer in the end."""
    if outcome.code >= 500:
        return True
    view = exchange.view
    return bool(exchange.failed_on) and (view.canary if outcome.arm == "canary" else view.stable) in exchange.failed_on


def counts_comparisons(exchange: Exchange) -> bool:
    """Whether every comparison is judged for itself, and not the first of each user."""
    return exchange.context.settings.rollout.evidence_unit == "comparison"


def _observe(observations: Observations, exchange: Exchange, unit: str, outcome: Outcome, answered: Answered) -> None:
    observations.record(
        exchange.view.observed,
        unit,
        exchange.view.trial_arm(outcome.arm),
        has_failed(exchange, outcome),
        outcome.sense_truncation(),
        outcome.sense_refusal(),
        outcome.first_byte_s,
        latency_token_s=time_tokens(outcome, exchange.started) if answered == "single" else None,
        length=measure_length(exchange, outcome) if answered == "duel" else None,
        answered=answered,
        weight=exchange.view.trial_weight,
    )

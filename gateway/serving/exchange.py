"""One request on its way: what was asked, by whom, which checkpoint answers; and what is noted when it ends."""

from __future__ import annotations

import time
from collections.abc import Coroutine, Sequence
from typing import Any

import msgspec

from gateway.access.keys import Identity
from gateway.engines.deployment import ServingView
from gateway.errors import ApiError, CheckpointGone, error_body, unavailable
from gateway.http.call import Call
from gateway.http.sse import DONE, encode_event
from gateway.rollout.observations import Observations
from gateway.serving.body import EngineRequest, replace_span
from gateway.serving.context import Context
from gateway.serving.routing import Arm, Route, Who, choose_route
from gateway.tables.rows import Answered

CLIENT_GONE = 499  # nginx's code for a client that left: not our failure


class Exchange(msgspec.Struct):
    """A request with its decisions; `started` is on the monotonic clock. `path`: where engines take it."""

    context: Context
    identity: Identity
    call: Call
    path: bytes
    body: bytes
    request: EngineRequest
    model_span: tuple[int, int]
    who: Who
    view: ServingView
    route: Route
    started: float
    is_recorded: bool = False  # its single answers are kept
    is_asked: bool = False  # its user was shown a comparison

    @property
    def engine_body(self) -> bytes:
        """The body with the checkpoint as its model."""
        return replace_span(self.body, self.model_span, self.route.checkpoint)

    def body_for(self, checkpoint: str) -> bytes:
        """The body with another checkpoint as its model."""
        return replace_span(self.body, self.model_span, checkpoint)

    def reroute(self) -> None:
        """Choose again, under the view that serves now."""
        self.view = self.context.deployment.view
        known = served_checkpoints(self.context)
        alias = self.context.settings.policy
        self.route = choose_route(self.request.model, alias, self.who, self.identity, self.view, known)

    @property
    def own_headers(self) -> bytes:
        """Header lines of ours: operators see which checkpoint answered."""
        if not self.identity.may("operator"):
            return b""
        return b"x-prefloop-checkpoint: %b\r\n" % self.route.checkpoint.encode()


class Outcome(msgspec.Struct):
    """How one answer ended, as far as its bytes showed."""

    arm: Arm
    code: int = 200
    is_truncated: bool = False
    is_refused: bool = False
    first_byte_s: float | None = None
    num_tokens: int = 0

    @property
    def is_telling(self) -> bool:
        """Whether it says anything of the checkpoint: neither the client's mistake nor its leaving does."""
        return self.code == 200 or self.code >= 500


def served_checkpoints(context: Context) -> frozenset[str]:
    """The checkpoints that engines hold, or will hold again when they are back."""
    return context.swap.expected.union(*(state.proven for state in context.deployment.engines.values()))


def watch_bytes(outcome: Outcome, data: bytes) -> None:
    """Note what the bytes of an answer say of its end; inside strings the quotes of these patterns are escaped."""
    if b'"finish_reason":"length"' in data:
        outcome.is_truncated = True
    if b'"refusal":"' in data or b'"finish_reason":"content_filter"' in data:
        outcome.is_refused = True


def failure_events() -> bytes:
    """What ends a stream whose engine went away."""
    return encode_event(error_body(502, "The engine stopped in the middle of its answer.", code="engine_lost")) + DONE


async def see_through(context: Context, work: Coroutine[Any, Any, None]) -> None:
    """Answer a request, which counts as in flight until that is done. Raises ApiError."""
    counters = context.deployment.counters
    try:
        await work
    except CheckpointGone:
        counters.failed_requests += 1
        raise unavailable("The checkpoint was unloaded; ask again.") from None
    except ApiError as error:
        note_refusal(context, error)
        raise
    finally:
        counters.num_in_flight -= 1


def note_refusal(context: Context, error: ApiError) -> None:
    """Count a request that is answered with an error of ours."""
    if error.status >= 500:
        context.deployment.counters.failed_requests += 1
    if error.status not in (503, 504):
        context.metrics.count_request("none", error.status)


def note_failure(exchange: Exchange) -> None:
    """Count a stream that could not be answered to its end."""
    exchange.context.deployment.counters.failed_requests += 1
    if exchange.call.watch is not None:
        exchange.call.watch.is_broken = True


def note_outcome(exchange: Exchange, outcome: Outcome) -> None:
    """Count one finished answer, and let the rollout's guardrails see a known user's first."""
    _count_outcome(exchange, outcome)
    observations = _find_observations(exchange)
    if observations is None or observations.is_settled(exchange.view.rollout or "", exchange.who.user):
        return
    if outcome.is_telling:
        _observe(observations, exchange, outcome, "single")


def note_pair(exchange: Exchange, outcomes: Sequence[Outcome], *, is_duel: bool) -> None:
    """Count two finished answers to one request, in the same step.

    The guardrails see both halves of a duel or neither, for one says nothing of their ratio; else the first that tells.
    A candidate of a duel that failed has lost it.
    """
    for outcome in outcomes:
        _count_outcome(exchange, outcome)
    observations = _find_observations(exchange)
    telling = [outcome for outcome in outcomes if outcome.is_telling]
    if observations is None:
        return
    if not is_duel:
        for outcome in telling[:1]:
            _observe(observations, exchange, outcome, "explore")
    elif len(telling) == len(outcomes):
        for outcome in telling:
            _observe(observations, exchange, outcome, "duel")
        if failed := [outcome.arm for outcome in telling if outcome.code >= 500]:
            observations.record_failed_duel(exchange.view.rollout, exchange.who.user, failed)


def _find_observations(exchange: Exchange) -> Observations | None:
    """Where the rollout's first requests are noted; None if this request is not part of one."""
    is_outside = exchange.view.rollout is None or exchange.route.is_pinned
    return None if is_outside else exchange.context.controller.observations


def _count_outcome(exchange: Exchange, outcome: Outcome) -> None:
    metrics = exchange.context.metrics
    metrics.count_request(outcome.arm, outcome.code)
    if outcome.is_refused:
        metrics.arms[outcome.arm].refusals.inc()
    if outcome.first_byte_s is not None or outcome.num_tokens:
        _note_tokens(exchange, outcome)


def _observe(observations: Observations, exchange: Exchange, outcome: Outcome, answered: Answered) -> None:
    observations.record(
        exchange.view.rollout,
        exchange.who.user,
        outcome.arm,
        outcome.code >= 500,
        outcome.is_truncated,
        outcome.is_refused,
        outcome.first_byte_s,
        answered=answered,
        weight=exchange.view.weight,
    )


def _note_tokens(exchange: Exchange, outcome: Outcome) -> None:
    arm = exchange.context.metrics.arms[outcome.arm]
    if outcome.first_byte_s is not None:
        arm.first_token.observe(outcome.first_byte_s)
        if outcome.num_tokens > 1:
            rest_s = time.monotonic() - exchange.started - outcome.first_byte_s
            arm.per_token.observe(max(0.0, rest_s) / (outcome.num_tokens - 1))
    if outcome.num_tokens:
        arm.output_tokens.observe(outcome.num_tokens)

"""One chat request on its way: what was asked, by whom, which checkpoint answers; and what is noted when it ends."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from gateway.body import ChatRequest, replace_span
from gateway.context import Context
from gateway.deployment import ServingView
from gateway.keys import Identity
from gateway.routing import Arm, Route, Who, choose_route

CHAT_PATH = "/v1/chat/completions"
CLIENT_GONE = 499  # nginx's code for a client that left: not our failure


@dataclass(frozen=True)
class Exchange:
    """A request with its decisions; `started` is on the monotonic clock."""

    context: Context
    identity: Identity
    body: bytes
    request: ChatRequest
    model_span: tuple[int, int]
    who: Who
    view: ServingView
    route: Route
    started: float = field(default_factory=time.monotonic)

    @property
    def engine_body(self) -> bytes:
        """The body with the checkpoint as its model."""
        return self.body_for(self.route.checkpoint)

    def body_for(self, checkpoint: str) -> bytes:
        """The body with another checkpoint as its model."""
        return replace_span(self.body, self.model_span, checkpoint)

    def reroute(self) -> Exchange:
        """The same request under the view that serves now."""
        deployment = self.context.deployment
        known = served_checkpoints(self.context)
        route = choose_route(
            self.request.model, self.context.settings.policy, self.who, self.identity, deployment.view, known
        )
        return replace(self, view=deployment.view, route=route)


@dataclass
class Outcome:
    """How one answer ended, as far as its bytes showed."""

    arm: Arm
    code: int = 200
    is_truncated: bool = False
    is_refused: bool = False
    first_byte_s: float | None = None
    num_tokens: int = 0


def served_checkpoints(context: Context) -> frozenset[str]:
    """The checkpoints that have proven themselves in some engine."""
    return frozenset().union(*(state.proven for state in context.deployment.engines.values()))


def watch_bytes(outcome: Outcome, data: bytes) -> None:
    """Note what the bytes of an answer say of its end; inside strings the quotes of these patterns are escaped."""
    if b'"finish_reason":"length"' in data:
        outcome.is_truncated = True
    if b'"refusal":"' in data or b'"finish_reason":"content_filter"' in data:
        outcome.is_refused = True


def note_outcome(exchange: Exchange, outcome: Outcome, *, is_paired: bool = False) -> None:
    """Count one finished answer, and let the rollout's guardrails see a known user's."""
    context = exchange.context
    metrics = context.metrics
    metrics.count_request(outcome.arm, outcome.code)
    arm = metrics.arms[outcome.arm]
    if outcome.is_refused:
        arm.refusals.inc()
    if outcome.first_byte_s is not None:
        arm.first_token.observe(outcome.first_byte_s)
        if outcome.num_tokens > 1:
            rest_s = time.monotonic() - exchange.started - outcome.first_byte_s
            arm.per_token.observe(max(0.0, rest_s) / (outcome.num_tokens - 1))
    if outcome.num_tokens:
        arm.output_tokens.observe(outcome.num_tokens)
    view, observations = exchange.view, context.deployment.observations
    is_judged = view.rollout is not None and exchange.who.user and not exchange.route.is_pinned
    if observations is None or not is_judged or outcome.code == CLIENT_GONE or 400 <= outcome.code < 500:
        return
    observations.note(
        view.rollout,
        exchange.who.user,
        outcome.arm,
        outcome.code >= 500,
        outcome.is_truncated,
        outcome.is_refused,
        outcome.first_byte_s,
        paired=is_paired,
        weight=view.weight,
    )

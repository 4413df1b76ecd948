"""One request on its way: what was asked, by whom, and which checkpoint answers. outcome.py books how it ended."""

from __future__ import annotations

import msgspec

from gateway.access.keys import Identity
from gateway.engines.deployment import Arm, ServingView
from gateway.http.call import Call
from gateway.serving.body import EngineRequest, replace_span
from gateway.serving.context import Context
from gateway.serving.endpoints import Endpoint
from gateway.serving.routing import Route, Who, choose_route


class Exchange(msgspec.Struct):
    """A request with its decisions; `started` is on the monotonic clock."""

    context: Context
    identity: Identity
    call: Call
    endpoint: Endpoint
    body: bytes
    request: EngineRequest
    model_span: tuple[int, int]
    who: Who
    view: ServingView
    route: Route
    started: float
    is_recorded: bool = False  # its single answers are kept
    is_asked: bool = False  # its user was shown a comparison
    failed_on: tuple[str, ...] = ()  # checkpoints for which an engine failed, whatever the client got in the end
    lost_engines: tuple[tuple[str, float], ...] = ()  # engines that went away over it, and when, on the monotonic clock

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
    def fallback(self) -> Route | None:
        """What answers if the route's checkpoint fails before its first byte: its rollout's stable, if it is the canary."""
        view, route = self.view, self.route
        if view.rollout is None or route.is_pinned or view.trial_arm(route.arm) != "canary":
            return None
        other: Arm = "canary" if view.is_baking else "stable"
        checkpoint = view.canary if view.is_baking else view.stable
        return None if checkpoint is None else Route(other, checkpoint, route.alias)

    def fall_back(self) -> bool:
        """Let `fallback` answer instead; says whether there is one."""
        route = self.fallback
        if route is None:
            return False
        self.route = route
        return True

    @property
    def own_headers(self) -> bytes:
        """Header lines of ours: operators see which checkpoint answered."""
        if not self.identity.may("operator"):
            return b""
        return b"x-prefloop-checkpoint: %b\r\n" % self.route.checkpoint.encode()


def served_checkpoints(context: Context) -> frozenset[str]:
    """The checkpoints that engines hold, or will hold again when they are back."""
    return context.swap.expected.union(*(state.proven for state in context.deployment.engines.values()))

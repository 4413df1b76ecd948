"""What machines ask: alive, ready, metrics. Ready means that a proven stable checkpoint is served by some engine.

The metrics name checkpoints: they are for keys of scope operator, and for programs on this machine.
"""

import msgspec
from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import Response

from gateway.access.auth import authenticate_request
from gateway.access.clients import find_request_client
from gateway.api.routes import MACHINES, OF_ANY, OF_KEYS, Operation, add_route, render
from gateway.serving.context import Context


class Health(msgspec.Struct, frozen=True):
    """`reason` says why it is not ready."""

    status: str
    reason: str | msgspec.UnsetType = msgspec.UNSET


_LIVE = Operation(
    tag=MACHINES, summary="Say that the process lives", answers={200: Health}, refusals=OF_ANY, needs_key=False
)
_READY = Operation(
    tag=MACHINES, summary="Say whether requests can be answered", answers={200: Health, 503: Health},
    refusals=OF_ANY, needs_key=False,
)  # fmt: skip
_METRICS = Operation(
    tag=MACHINES, summary="Show the metrics, as Prometheus reads them; without a key only to this machine",
    answers={200: str}, refusals=OF_ANY | OF_KEYS | {503}, is_text=True,
)  # fmt: skip


def build_health_router(context: Context) -> APIRouter:
    """/livez, /readyz and /metrics."""
    router = APIRouter()

    @add_route(router, "GET", "/livez", _LIVE)
    async def show_alive() -> Response:
        return render(Health("ok"))

    @add_route(router, "GET", "/readyz", _READY)
    async def show_ready() -> Response:
        reason = find_unready_reason(context)
        if reason is None:
            return render(Health("ok"))
        return render(Health("not ready", reason), 503, {"retry-after": "2"})

    @add_route(router, "GET", "/metrics", _METRICS)
    async def show_metrics(request: Request) -> Response:
        if not find_request_client(request, context.settings.gateway.trusted_proxies).is_local:
            authenticate_request(request, context.keys, "operator")
        return Response(context.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    return router


def find_unready_reason(context: Context) -> str | None:
    """Why requests cannot be served now; None if they can."""
    stable = context.deployment.view.stable
    if stable is None:
        return "no stable checkpoint"
    states = context.deployment.engines.values()
    if not any(state.up and not state.is_hung and stable in state.proven for state in states):
        return "no engine holds the stable checkpoint"
    return None

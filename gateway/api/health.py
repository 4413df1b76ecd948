"""What machines ask: alive, ready, metrics. Ready means that a proven stable checkpoint is served by some engine."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from gateway.serving.context import Context


def build_health_router(context: Context) -> APIRouter:
    """/livez, /readyz and /metrics."""
    router = APIRouter()

    @router.get("/livez")
    async def show_alive() -> Response:
        return JSONResponse({"status": "ok"})

    @router.get("/readyz")
    async def show_ready() -> Response:
        reason = find_unready_reason(context)
        if reason is None:
            return JSONResponse({"status": "ok"})
        return JSONResponse({"status": "not ready", "reason": reason}, status_code=503, headers={"retry-after": "2"})

    @router.get("/metrics")
    async def show_metrics() -> Response:
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

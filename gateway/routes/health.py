"""What machines ask: alive, ready, metrics. Ready means that a proven stable checkpoint is served by some engine."""

from __future__ import annotations

import asyncio
import math

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response

from feedback.choices import count_outbox
from gateway.context import Context

_COUNT_TIMEOUT_S = 1.0


def build_health_router(context: Context) -> APIRouter:
    """/livez, /readyz and /metrics."""
    router = APIRouter()
    outbox = OutboxCount(context)

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
        context.metrics.outbox_pending.set(await outbox.read())
        return Response(await context.siblings.render(), media_type=CONTENT_TYPE_LATEST)

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


class OutboxCount:
    """How many rows wait for the log. Asks once at a time: a server that hangs must not take a thread a scrape."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._asking: asyncio.Task[int] | None = None

    async def read(self) -> float:
        """The count; NaN if the database does not tell within a second."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(asyncio.to_thread(self._count))
        done, _ = await asyncio.wait([self._asking], timeout=_COUNT_TIMEOUT_S)
        return math.nan if not done or self._asking.exception() is not None else self._asking.result()

    def _count(self) -> int:
        with self._context.database.connect() as conn:
            return count_outbox(conn)

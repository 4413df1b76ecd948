"""What operators ask of what people said. Scope operator."""

import asyncio
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter

from feedback.quality.bias import Vote, load_votes, measure_bias
from gateway.api.guarded import OperatorRoute
from gateway.serving.context import Context

_NUM_VOTES = 20_000


def build_feedback_router(context: Context) -> APIRouter:
    """GET /operator/v1/feedback/bias."""
    router = APIRouter(prefix="/operator/v1", route_class=OperatorRoute)

    @router.get("/feedback/bias")
    async def show_bias() -> dict[str, Any]:
        bias = measure_bias(await asyncio.to_thread(_load, context))
        return {"is_biased": bias.is_biased, **asdict(bias)}

    return router


def _load(context: Context) -> list[Vote]:
    with context.database.connect() as conn:
        return load_votes(conn, _NUM_VOTES)

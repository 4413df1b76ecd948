"""A client of the operators' routes over a rollout world, without a server."""

from types import SimpleNamespace

import httpx
from fastapi import FastAPI, Request
from starlette.responses import Response
from world import World

from gateway.access.keys import Identity
from gateway.api.operators import build_operator_router
from gateway.errors import ApiError
from gateway.serving.pairs.scorer_client import ScorerClient


def open_client(world: World) -> httpx.AsyncClient:
    keys = SimpleNamespace(identify=lambda header: Identity("k1", "ops", frozenset({header.decode().split()[1]})))
    context = SimpleNamespace(
        settings=world.settings,
        writer=world.writer,
        deployment=world.deployment,
        controller=world.controller,
        scorer=ScorerClient("", None, None),  # type: ignore[arg-type]
        keys=keys,
        secrets=None,
    )
    app = FastAPI()
    app.state.context = context
    app.include_router(build_operator_router(context))  # type: ignore[arg-type]

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return Response(error.body(), error.status, media_type="application/json")

    headers = {"authorization": "Bearer operator"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)

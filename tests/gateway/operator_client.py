"""A client of the operators' routes over a rollout world, without a server."""

from types import SimpleNamespace

import httpx
from fastapi import FastAPI, Request
from starlette.responses import Response
from world import World

from gateway.access.keys import Identity
from gateway.api.operators import build_operator_router
from gateway.errors import ApiError, EngineUnavailable
from gateway.serving.pairs.scorer_client import ScorerClient

TRAINER_TOKEN = "told"


class ScriptedTrainer:
    """Says what a test wrote: a status and a body by path; else nothing. Takes commands with its token alone."""

    def __init__(self, pages: dict[str, tuple[int, bytes]]) -> None:
        self.pages = pages

    async def call(
        self, url: str, path: str, payload: object, *, timeout_s: float, token: str = ""
    ) -> tuple[int, bytes]:
        if payload is not None and token != TRAINER_TOKEN:
            return 403, b"{}"
        if path not in self.pages:
            raise EngineUnavailable(url)
        return self.pages[path]


def open_client(world: World, trainer: dict[str, tuple[int, bytes]] | None = None) -> httpx.AsyncClient:
    """trainer: what it answers, by path."""
    keys = SimpleNamespace(identify=lambda header: Identity("k1", "ops", frozenset({header.decode().split()[1]})))
    context = SimpleNamespace(
        settings=world.settings,
        writer=world.writer,
        database=world.engine,
        upstream=ScriptedTrainer(trainer or {}),
        deployment=world.deployment,
        controller=world.controller,
        scorer=ScorerClient("", None, None),  # type: ignore[arg-type]
        keys=keys,
        secrets=SimpleNamespace(trainer_token=TRAINER_TOKEN),
    )
    app = FastAPI()
    app.state.context = context
    app.include_router(build_operator_router(context))  # type: ignore[arg-type]

    @app.exception_handler(ApiError)
    async def refuse(_: Request, error: ApiError) -> Response:
        return Response(error.body(), error.status, media_type="application/json")

    headers = {"authorization": "Bearer operator"}
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test", headers=headers)

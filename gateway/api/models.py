"""Lists what may be asked for: apps see the policy's alias, operators the served checkpoints as well."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.access.auth import authenticate
from gateway.errors import not_found
from gateway.serving.context import Context
from gateway.serving.exchange import served_checkpoints


def build_models_router(context: Context) -> APIRouter:
    """GET /v1/models and /v1/models/{id}."""
    router = APIRouter()

    def visible(request: Request) -> list[str]:
        identity = authenticate(request.headers, context.keys, "app", "operator")
        alias = context.settings.policy
        return [alias, *sorted(served_checkpoints(context))] if identity.may("operator") else [alias]

    @router.get("/v1/models")
    async def list_models(request: Request) -> Response:
        return _json({"object": "list", "data": [_describe(name) for name in visible(request)]})

    @router.get("/v1/models/{name}")
    async def get_model(name: str, request: Request) -> Response:
        if name not in visible(request):
            raise not_found(f"The model `{name}` does not exist.", code="model_not_found", param="model")
        return _json(_describe(name))

    return router


def _describe(name: str) -> dict[str, object]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "prefloop"}


def _json(body: object) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")

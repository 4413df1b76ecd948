"""Lists what may be asked for: apps see the policy's alias, operators the served checkpoints as well."""

from typing import Literal

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.access.auth import authenticate_request
from gateway.api.routes import APPS, OF_ANY, OF_KEYS, Operation, add_route, render
from gateway.errors import not_found
from gateway.serving.context import Context
from gateway.serving.exchange import served_checkpoints


class Model(msgspec.Struct, frozen=True):
    """A model."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "prefloop"


class ModelList(msgspec.Struct, frozen=True):
    """What may be asked for."""

    data: list[Model]
    object: Literal["list"] = "list"


_LIST = Operation(tag=APPS, summary="List what may be asked for", answers={200: ModelList}, refusals=OF_ANY | OF_KEYS)
_SHOW = Operation(tag=APPS, summary="Describe a model", answers={200: Model}, refusals=OF_ANY | OF_KEYS | {404})


def build_models_router(context: Context) -> APIRouter:
    """GET /v1/models and /v1/models/{id}."""
    router = APIRouter()

    def list_visible(request: Request) -> list[str]:
        identity = authenticate_request(request, context.keys, "app", "operator")
        alias = context.settings.policy
        return [alias, *sorted(served_checkpoints(context))] if identity.may("operator") else [alias]

    @add_route(router, "GET", "/v1/models", _LIST)
    async def list_models(request: Request) -> Response:
        return render(ModelList([Model(name) for name in list_visible(request)]))

    @add_route(router, "GET", "/v1/models/{name}", _SHOW)
    async def get_model(name: str, request: Request) -> Response:
        if name not in list_visible(request):
            raise not_found(f"The model `{name}` does not exist.", code="model_not_found", param="model")
        return render(Model(name))

    return router

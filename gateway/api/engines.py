"""The HTTP of whoever runs engines for whole models: what is wanted, what is there, and saying so. Scope operator."""

from typing import Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from gateway.access.auth import require_scope
from gateway.api.guarded import OperatorRoute
from gateway.engines.engine import EngineState
from gateway.errors import ApiError, RefusedAction, bad_request, not_found
from gateway.serving.context import Context
from gateway.tables.checkpoints import CheckpointRow


class NewEngine(BaseModel):
    """An engine that serves a checkpoint's whole weights, under the checkpoint's id as the model's name."""

    url: str = Field(min_length=1, max_length=500)
    checkpoint: str = Field(min_length=1, max_length=200)


def build_engines_router(context: Context) -> APIRouter:
    """GET, POST and DELETE /operator/v1/engines."""
    router = APIRouter(prefix="/operator/v1", route_class=OperatorRoute)
    register = context.controller.engines

    @router.get("/engines")
    async def show() -> dict[str, Any]:
        wanted, registered = await register.read(context.controller.membership.list_live())
        states = context.deployment.engines
        unseen = [engine for engine in registered if engine.url not in states]  # registered through another gateway
        return {
            "wanted": [_show_wanted(row) for row in wanted],
            "data": [
                *(show_engine(state) for state in states.values()),
                *(show_engine(EngineState(engine.url, checkpoint=engine.checkpoint)) for engine in unseen),
            ],
        }

    @router.post("/engines")
    async def add(request: Request, body: NewEngine, response: Response) -> dict[str, Any]:
        actor = "key:" + require_scope(request, "operator").key_id
        try:
            engine, is_new = await register.register(body.url, body.checkpoint, actor)
        except LookupError as error:
            raise not_found(f"No checkpoint {error}.", param="checkpoint") from error
        except ValueError as error:
            raise bad_request(str(error)) from error
        except RefusedAction as error:
            raise ApiError(409, str(error), code="conflict") from error
        response.status_code = 201 if is_new else 200
        return {"url": engine.url, "checkpoint": engine.checkpoint, "registered_at": engine.registered_at}

    @router.delete("/engines")
    async def withdraw(url: str = Query(min_length=1, max_length=500)) -> dict[str, Any]:
        was_registered = await register.withdraw(url)
        state = context.deployment.engines.get(url.rstrip("/"))
        in_flight = state.num_in_flight if state is not None else 0
        return {"url": url.rstrip("/"), "was_registered": was_registered, "in_flight": in_flight}

    return router


def show_engine(state: EngineState) -> dict[str, Any]:
    """One engine as this gateway sees it. `adapters`: the names it answers to; `proven`: those that serve."""
    return {
        "url": state.url,
        "checkpoint": state.checkpoint,
        "up": state.up,
        "breaker": state.breaker.phase,
        "is_hung": state.is_hung,
        "is_withdrawn": state.is_withdrawn,
        "in_flight": state.num_in_flight,
        "adapters": sorted(state.adapters),
        "proven": sorted(state.proven),
    }


def _show_wanted(row: CheckpointRow) -> dict[str, Any]:
    return {"checkpoint": row.id, "path": row.path, "digest": row.digest, "status": row.status}

"""The routes of whoever runs engines for whole models: which are required, which are there, and saying so."""

from typing import Annotated

import msgspec

from gateway.access.keys import Identity
from gateway.api.routes import OperatorRoutes
from gateway.engines.engine import REGISTERED, EngineState
from gateway.errors import ApiError, RefusedAction, bad_request, not_found
from gateway.serving.context import Context

_Url = Annotated[str, msgspec.Meta(min_length=1, max_length=500)]


class NewEngine(msgspec.Struct, frozen=True):
    """An engine that serves a checkpoint's whole weights, under the checkpoint's id as the model's name."""

    url: _Url
    checkpoint: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class RegisteredEngine(msgspec.Struct, frozen=True):
    """What was taken."""

    url: str
    checkpoint: str
    registered_at: float


class EngineAddress(msgspec.Struct, frozen=True):
    """Which engine."""

    url: _Url


class WithdrawnEngine(msgspec.Struct, frozen=True):
    """Nothing more goes there. `in_flight`: this gateway's requests that have not ended."""

    url: str
    was_registered: bool
    in_flight: int


class EngineView(msgspec.Struct, frozen=True, kw_only=True):
    """One engine as this gateway sees it. `checkpoint`: the whole model it holds, null where it takes adapters.

    `source`: who named it: `settings`, `registered`, or the URL whose name was looked up in DNS.

    `adapters`: the names it answers to; `proven`: those that serve. `registered_at`: of a whole model's, the earliest claims it.
    """

    url: str
    checkpoint: str | None
    source: str
    up: bool
    breaker: str
    is_hung: bool
    is_withdrawn: bool
    in_flight: int
    adapters: list[str]
    proven: list[str]
    registered_at: float | None = None


class WholeModel(msgspec.Struct, frozen=True):
    """A checkpoint that needs an engine of its own. `stored_as`: the id under which the store has its files, if there is one."""

    checkpoint: str
    path: str
    digest: str
    status: str
    stored_as: str = ""


class EngineList(msgspec.Struct, frozen=True):
    """What wants an engine, and what is there."""

    wanted: list[WholeModel]
    data: list[EngineView]


def add_engine_routes(routes: OperatorRoutes, context: Context) -> None:
    """GET, POST and DELETE /operator/v1/engines."""
    register = context.controller.engines

    @routes.add("GET", "/engines", "List the whole models that want an engine, and the engines", {200: EngineList})
    async def show(_: Identity) -> EngineList:
        wanted, registered = await register.read(context.controller.membership.list_live())
        states = context.deployment.engines
        since = {engine.url: engine.registered_at for engine in registered}
        unseen = [engine for engine in registered if engine.url not in states]  # registered through another gateway
        return EngineList(
            [WholeModel(row.id, row.path, row.digest, row.status, row.stored_as) for row in wanted],
            [
                *(show_engine(state, since.get(state.url)) for state in states.values()),
                *(
                    show_engine(
                        EngineState(engine.url, checkpoint=engine.checkpoint, source=REGISTERED), engine.registered_at
                    )
                    for engine in unseen
                ),
            ],
        )

    @routes.add(
        "POST", "/engines", "Register an engine that serves a whole model; 200 if it was known",
        {200: RegisteredEngine, 201: RegisteredEngine}, 404, 409, body=NewEngine,
    )  # fmt: skip
    async def add(identity: Identity, body: NewEngine) -> tuple[int, RegisteredEngine]:
        known = context.deployment.engines.get(body.url.rstrip("/"))
        if known is not None and known.source in context.settings.gateway.engine_names and not known.is_withdrawn:
            raise ApiError(409, f"{known.url} is an engine for adapters, found by {known.source}.", code="conflict")
        try:
            engine, is_new = await register.register(body.url, body.checkpoint, f"key:{identity.key_id}")
        except LookupError as error:
            raise not_found(f"No checkpoint {error}.", param="checkpoint") from error
        except ValueError as error:
            raise bad_request(str(error)) from error
        except RefusedAction as error:
            raise ApiError(409, str(error), code="conflict") from error
        return 201 if is_new else 200, RegisteredEngine(engine.url, engine.checkpoint, engine.registered_at)

    @routes.add(
        "DELETE", "/engines", "Withdraw an engine; harmless to repeat", {200: WithdrawnEngine}, query=EngineAddress
    )
    async def withdraw(_: Identity, query: EngineAddress) -> WithdrawnEngine:
        was_registered = await register.withdraw(query.url)
        url = query.url.rstrip("/")
        state = context.deployment.engines.get(url)
        return WithdrawnEngine(url, was_registered, 0 if state is None else state.num_in_flight)


def show_engine(state: EngineState, registered_at: float | None = None) -> EngineView:
    """One engine as operators see it."""
    return EngineView(
        url=state.url,
        checkpoint=state.checkpoint,
        source=state.source,
        up=state.up,
        breaker=state.breaker.phase,
        is_hung=state.is_hung,
        is_withdrawn=state.is_withdrawn,
        in_flight=state.num_in_flight,
        adapters=sorted(state.adapters),
        proven=sorted(state.proven),
        registered_at=registered_at,
    )

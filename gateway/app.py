"""Builds one running gateway, and dispatches: the chat path straight to wire.py, everything else through FastAPI.

On start the writer, the relay, the swap and the rollout controller run; on SIGTERM the server stops listening, lets
requests end, then stops them in the opposite order. Every answer carries x-request-id, every error has OpenAI's
shape.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from feedback.connection import wait_for_database
from feedback.database import Writer, open_database
from feedback.errors import DatabaseError
from feedback.outages import log_failure
from feedback.relay import Relay
from feedback.schema import migrate, migrate_url
from gateway.context import Context
from gateway.endpoints import ENDPOINTS
from gateway.engines.deployment import Deployment
from gateway.engines.fleet import Fleet
from gateway.engines.swap import Swap
from gateway.errors import ApiError, GatewayError, error_body, unavailable
from gateway.http.call import Call, CallMaker, Handler, make_request_id, read_request_id
from gateway.http.outbox import Outbox
from gateway.http.server import build_server
from gateway.http.upstream import Upstream
from gateway.keys import KeyRing, ensure_admin_key
from gateway.limits.limiter import Limits
from gateway.openapi.document import build_document_router
from gateway.pairs.asking import AskLedger
from gateway.playground import PLAYGROUND_PATH, build_playground_handler
from gateway.recording.completions import Completions
from gateway.recording.recorder import Recorder
from gateway.recording.store import CompletionStore
from gateway.requests import ClientGone
from gateway.rollout.controller import Controller
from gateway.rollout.metrics import RolloutCollector
from gateway.rollout.observations import Observations
from gateway.routes.choices import build_choices_router, find_choice_handler
from gateway.routes.engines import build_engines_router
from gateway.routes.feedback import build_feedback_router
from gateway.routes.health import build_health_router
from gateway.routes.keys import build_keys_router
from gateway.routes.models import build_models_router
from gateway.routes.operator import build_operator_router
from gateway.routes.signals import build_signals_router
from gateway.routes.web import build_web_router
from gateway.secrets import Secrets, check_listening, load_secrets
from gateway.settings import GatewaySection, GatewaySettings
from gateway.siblings import Place, Siblings
from gateway.telemetry.logs import current_request_id, set_up_logging
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.state_metrics import StateCollector
from gateway.telemetry.watched import check_tracing, open_watchers
from gateway.wire import build_handlers
from gateway.workers import Worker, Workers

logger = logging.getLogger("gateway")

_REFRESH_KEYS_S = 5.0


class Gateway:
    """The ASGI app. `context` is there from startup on."""

    def __init__(self, settings: GatewaySettings, secrets: Secrets) -> None:
        self._settings = settings
        self.secrets = secrets
        self.place = Place()  # among the workers of this gateway; who forks changes it before the start
        self.on_start: Callable[[], Coroutine[Any, Any, None]] | None = None
        self.handlers: dict[bytes, Handler] = {}  # of the paths that reach an engine, for the server's protocol
        self.find_handler: Callable[[bytes], Handler | None] = lambda path: None
        self.make_call: CallMaker = Call
        self.outbox = Outbox()
        self.max_body_bytes = settings.gateway.max_body_bytes
        self.body_timeout_s = settings.gateway.body_timeout_s
        self.idle_timeout_s = settings.gateway.idle_timeout_s
        self._context: Context | None = None
        self._api = build_api(self._run, {*ENDPOINTS, PLAYGROUND_PATH})

    @property
    def context(self) -> Context:
        """The running gateway's parts."""
        assert self._context is not None, "the gateway has not started"
        return self._context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._api(scope, receive, send)
            return
        if scope["type"] != "http":  # we speak no websockets
            await send({"type": "websocket.close", "code": 1000})
            return
        given = Headers(scope=scope).get("x-request-id")
        request_id = read_request_id(None if given is None else given.encode("latin-1")) or make_request_id()
        current_request_id.set(request_id)
        await self._api(scope, receive, _with_request_id(send, request_id))

    @contextlib.asynccontextmanager
    async def _run(self, api: FastAPI) -> AsyncIterator[None]:
        async with (
            open_context(self._settings, self.secrets, self.place) as context,
            open_watchers(self._settings.gateway, context.metrics.registry) as self.make_call,
        ):
            self._context = api.state.context = context
            watching = asyncio.create_task(self.on_start()) if self.on_start is not None else None
            for build in (
                build_health_router,
                build_models_router,
                build_signals_router,
                build_keys_router,
                build_operator_router,
                build_engines_router,
                build_feedback_router,
                build_web_router,
            ):
                api.include_router(build(context))
            api.include_router(build_choices_router())
            api.include_router(build_document_router(api.routes))
            self.handlers |= build_handlers(context) | {PLAYGROUND_PATH: build_playground_handler(context)}
            self.find_handler = partial(find_choice_handler, context)
            yield
            if watching is not None:
                watching.cancel()


def create_app(settings: GatewaySettings) -> Gateway:
    """The gateway as an ASGI app; makes the secrets if there are none. Raises SecretsError, MissingExtra."""
    check_tracing(settings.gateway)
    return Gateway(settings, load_secrets(settings.state_dir))


@contextlib.asynccontextmanager
async def open_context(settings: GatewaySettings, secrets: Secrets, place: Place) -> AsyncIterator[Context]:
    """Open everything a gateway needs and keep its loops running; close it in the opposite order."""
    async with contextlib.AsyncExitStack() as stack:
        database = await asyncio.to_thread(open_database, settings.gateway_database)
        stack.callback(database.dispose)
        await asyncio.to_thread(migrate, database, "gateway")
        writer = Writer(database)
        stack.push_async_callback(asyncio.to_thread, writer.close)
        await writer.arun(lambda conn: ensure_admin_key(conn, secrets, time.time()))
        keys = KeyRing(secrets.pepper)
        await asyncio.to_thread(keys.refresh, database)
        log = await asyncio.to_thread(settings.open_log)
        stack.push_async_callback(asyncio.to_thread, log.close)
        relay = Relay(database, writer, log, settings.topic)
        relay.start()
        stack.push_async_callback(asyncio.to_thread, relay.close)
        is_sqlite = database.dialect.name == "sqlite"
        limits_writer = writer if is_sqlite else Writer(database)
        if not is_sqlite:
            stack.push_async_callback(asyncio.to_thread, limits_writer.close)
        limits = Limits(limits_writer, settings.gateway)
        stack.push_async_callback(limits.close)
        deployment = Deployment(settings.gateway.engines, Observations(), settings.gateway.breaker_limits)
        upstream = Upstream(settings.gateway)
        stack.callback(upstream.close)
        if not deployment.is_single:
            for state in deployment.engines.values():
                state.on_hang = partial(upstream.drop_waiting, state.url)
        metrics = Metrics()
        completions = Completions(CompletionStore(settings.completions_database), settings, metrics.registry)
        completions.start()
        stack.push_async_callback(asyncio.to_thread, completions.close)
        metrics.watch_in_flight(lambda: deployment.counters.num_in_flight)
        swap = Swap(deployment, upstream, settings.gateway)
        fleet = Fleet(writer, deployment, swap, settings)
        await fleet.join(is_alone=is_sqlite)
        stack.push_async_callback(fleet.leave)
        controller = Controller(writer, swap, deployment, fleet, settings)
        metrics.registry.register(StateCollector(deployment, fleet, lambda: relay.state))
        siblings = Siblings(place, metrics, partial(asyncio.to_thread, keys.refresh, database))
        await stack.enter_async_context(siblings.listen())
        metrics.registry.register(RolloutCollector(deployment, controller))
        context = Context(
            settings=settings,
            writer=writer,
            database=database,
            deployment=deployment,
            swap=swap,
            controller=controller,
            secrets=secrets,
            keys=keys,
            metrics=metrics,
            recorder=Recorder(writer),
            asks=AskLedger(settings.gateway.max_asks_per_user_day),
            upstream=upstream,
            relay=relay,
            completions=completions,
            limits=limits,
            siblings=siblings,
        )
        loops = (upstream.run(), swap.run(), fleet.run(), controller.run(), limits.run(), _keep_keys_fresh(context))
        for work in loops:
            stack.push_async_callback(_stop, asyncio.create_task(work))
        yield context


async def _keep_keys_fresh(context: Context) -> None:
    """A key that was revoked through another gateway stops working here within seconds."""
    while True:
        await asyncio.sleep(_REFRESH_KEYS_S)
        try:
            await asyncio.to_thread(context.keys.refresh, context.database)
        except Exception as error:
            log_failure(logger, "the keys could not be read again", error)


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await task
        except Exception:
            logger.exception("a loop ended in an error")


def build_api(lifespan: Any, engine_paths: Collection[bytes]) -> FastAPI:
    """FastAPI with errors in OpenAI's shape; routes are added once the context is there.

    `engine_paths`: what the server's protocol answers to POST.
    """
    api = FastAPI(title="prefloop", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    api.router.redirect_slashes = False

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _refuse(error)

    async def refuse_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if request.url.path.encode() in engine_paths:
            return Response(error_body(405, "This address takes POST."), 405, {"allow": "POST"}, "application/json")
        message = {404: "There is no such address.", 405: "This address takes other methods."}.get(error.status_code)
        body = error_body(error.status_code, message or str(error.detail))
        return Response(body, error.status_code, headers=error.headers, media_type="application/json")

    async def refuse_input(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        param = ".".join(str(part) for part in first["loc"][1:]) or None
        return Response(error_body(400, str(first["msg"]), param=param), 400, media_type="application/json")

    async def forget(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody is there to read it

    async def refuse_for_now(request: Request, error: Exception) -> Response:
        logger.error("%s %s: the database failed: %s", request.method, request.url.path, error)
        return _refuse(unavailable("The database cannot be used now."))

    async def fail(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Response(error_body(500, "Internal error."), 500, media_type="application/json")

    api.add_exception_handler(ApiError, refuse)
    api.add_exception_handler(HTTPException, refuse_route)
    api.add_exception_handler(RequestValidationError, refuse_input)
    api.add_exception_handler(ClientGone, forget)
    api.add_exception_handler(ClientDisconnect, forget)
    api.add_exception_handler(DatabaseError, refuse_for_now)
    api.add_exception_handler(SQLAlchemyError, refuse_for_now)
    api.add_exception_handler(Exception, fail)
    return api


def _refuse(error: ApiError) -> Response:
    return Response(error.body(), error.status, headers=error.headers, media_type="application/json")


def _with_request_id(send: Send, request_id: str) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = request_id
        await send(message)

    return send_with_id


def main() -> int:
    """Run the gateway until SIGTERM or SIGINT; requests in flight may end first."""
    settings = GatewaySettings()
    set_up_logging(settings.gateway.log_format)
    try:
        return run_gateway(settings)
    except GatewayError as error:
        logger.error("%s", error)
        return 2
    except DatabaseError as error:
        logger.error("%s", error)
        return 1


def run_gateway(settings: GatewaySettings) -> int:
    """`main` by settings: the exit status. Raises GatewayError, and DatabaseError if the database cannot be used."""
    section = settings.gateway
    check_listening(section.host, section.secrets_configured)
    settings.check_workers()
    app = create_app(settings)
    wait_for_database(settings.gateway_database, section.database_wait_s)
    migrate_url(settings.gateway_database, "gateway")
    workers = None
    if section.workers > 1:
        serve = partial(_serve, app, section)
        workers = Workers(serve, section.workers, section.host, section.port, section.drain_timeout_s)
    if app.secrets.is_new:
        where = settings.state_dir / "secrets" / "admin_key"
        print(f"admin key (shown once, kept in {where}): {app.secrets.admin_key}", flush=True)
    logger.info("listening on http://%s:%d, engines %s", section.host, section.port, ", ".join(section.engines))
    status = _serve(app, section) if workers is None else workers.run()
    logger.info("stopped")
    return status


def _serve(app: Gateway, section: GatewaySection, worker: Worker | None = None) -> int:
    """Serve until a signal; the exit status."""
    # uvicorn repeats the signal once it has stopped: a clean stop ends with status 0 all the same.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = build_server(app, host=section.host, port=section.port, drain_timeout_s=section.drain_timeout_s)
    if worker is None:
        server.run()
        return 0
    app.place = worker.place
    app.on_start = partial(worker.watch, server)
    server.run([worker.listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One running gateway, and its dispatch: paths to an engine straight to wire.py, everything else through FastAPI.

On start its parts are opened (opening.py) and its routes added; on SIGTERM the server stops listening, lets requests
end, then closes the parts. Every answer carries x-request-id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from feedback.connection import wait_for_database
from feedback.errors import DatabaseError
from feedback.schema import migrate_url
from gateway.access.secrets import Secrets, check_listening, load_secrets
from gateway.api.application import build_api, with_request_id
from gateway.api.choices import build_choices_router, find_choice_handler
from gateway.api.document import build_document_router
from gateway.api.health import build_health_router
from gateway.api.models import build_models_router
from gateway.api.operators import build_operator_router
from gateway.api.playground import PLAYGROUND_PATH, build_playground_handler, has_playground
from gateway.api.signals import build_signals_router
from gateway.api.web import build_web_router
from gateway.errors import GatewayError
from gateway.http.call import Call, CallMaker, Handler, make_request_id, read_request_id
from gateway.http.outbox import Outbox
from gateway.http.server import build_server
from gateway.opening import open_context
from gateway.serving.context import Context
from gateway.serving.dispatch import build_handlers
from gateway.serving.endpoints import ENDPOINTS
from gateway.settings import GatewaySection, GatewaySettings
from gateway.siblings import Place
from gateway.telemetry.logs import current_request_id, set_up_logging
from gateway.telemetry.watched import check_tracing, open_watchers
from gateway.workers import Worker, Workers

logger = logging.getLogger("gateway")


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
        self._api = build_api(
            self._run, {*ENDPOINTS, PLAYGROUND_PATH} if has_playground(settings.gateway) else ENDPOINTS
        )

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
        await self._api(scope, receive, with_request_id(send, request_id))

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
                build_operator_router,
                build_web_router,
            ):
                api.include_router(build(context))
            api.include_router(build_choices_router())
            api.include_router(build_document_router(api.routes))
            self.handlers |= build_handlers(context)
            if has_playground(self._settings.gateway):
                self.handlers[PLAYGROUND_PATH] = build_playground_handler(context)
            self.find_handler = partial(find_choice_handler, context)
            yield
            if watching is not None:
                watching.cancel()


def create_app(settings: GatewaySettings) -> Gateway:
    """The gateway as an ASGI app; makes the secrets if there are none. Raises SecretsError, MissingExtra."""
    check_tracing(settings.gateway)
    return Gateway(settings, load_secrets(settings.state_dir))


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

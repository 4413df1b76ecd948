"""One running gateway: its parts are opened in the order in which they need each other, and closed backwards.

Paths to an engine go straight to serving/dispatch.py, everything else through FastAPI. On SIGTERM the server stops
listening, lets requests end, then closes the parts. Every answer carries x-request-id.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from functools import partial

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from feedback.database import Writer, open_database, wait_for_database
from feedback.errors import DatabaseError, SigningKeyError, StoreUnavailable
from feedback.relay import Relay
from feedback.schema import migrate, migrate_url
from feedback.secret_files import ADMIN_KEY, locate_secret
from feedback.settings import load_settings
from feedback.signing import read_trusted_keys
from gateway.access.key_follower import KeyFollower
from gateway.access.key_ring import KeyRing
from gateway.access.key_usage import UsageBook
from gateway.access.keys import ensure_admin_key
from gateway.access.limits.limiter import Limits
from gateway.access.secrets import Secrets, check_listening, load_secrets
from gateway.api.application import build_api, with_request_id
from gateway.api.choices import build_choices_router, find_choice_handler
from gateway.api.document import build_document_router
from gateway.api.health import build_health_router
from gateway.api.models import build_models_router
from gateway.api.operators import build_operator_router
from gateway.api.playground import PLAYGROUND_PATH, build_playground_handler, has_playground
from gateway.api.signals import build_signals_router
from gateway.api.teaching import BESIDE_PATH, build_beside_handler, build_teaching_router
from gateway.api.web import build_web_router
from gateway.engines.deployment import Deployment
from gateway.engines.discovery import Discovery
from gateway.engines.engine import BreakerLimits
from gateway.engines.swap import Swap
from gateway.errors import GatewayError
from gateway.http.call import Call, CallMaker, Handler, make_request_id, read_request_id
from gateway.http.outbox import Outbox
from gateway.http.server import build_server
from gateway.http.upstream import Upstream
from gateway.notices.notifier import Notifier
from gateway.rollout.controller import Controller
from gateway.rollout.harm_screen import build_screen, load_screen
from gateway.rollout.membership import Membership
from gateway.serving.context import Context
from gateway.serving.dispatch import build_handlers
from gateway.serving.divergence import DivergenceSensor
from gateway.serving.endpoints import ENDPOINTS
from gateway.serving.metrics import Metrics
from gateway.serving.outcome import count_refusals, record_unread
from gateway.serving.pairs.asking import AskLedger
from gateway.serving.pairs.scorer_client import ScorerClient
from gateway.serving.pairs.shared_asks import SharedAsks
from gateway.serving.recording.comparison_recorder import ComparisonRecorder
from gateway.serving.recording.completion_recorder import CompletionRecorder
from gateway.serving.recording.completion_store import CompletionStore
from gateway.serving.recording.retention import Retention
from gateway.serving.shadow_queue import ShadowQueue
from gateway.settings import GatewaySettings
from gateway.telemetry.key_metrics import KeyCollector
from gateway.telemetry.logs import current_request_id, set_up_logging
from gateway.telemetry.rollout_metrics import RolloutCollector
from gateway.telemetry.state_metrics import StateCollector
from gateway.telemetry.watched import check_tracing, open_watchers

logger = logging.getLogger("gateway")


class Gateway:
    """The ASGI app. `context` is there from startup on."""

    def __init__(self, settings: GatewaySettings, secrets: Secrets) -> None:
        self._settings = settings
        self.secrets = secrets
        self.handlers: dict[bytes, Handler] = {}  # of the paths that reach an engine, for the server's protocol
        self.find_handler: Callable[[bytes], Handler | None] = lambda path: None
        self.note_unread: Callable[[int], None] = lambda status: None
        self.make_call: CallMaker = Call
        self.outbox = Outbox()
        self.max_body_bytes = settings.gateway.max_body_bytes
        self.body_timeout_s = settings.gateway.body_timeout_s
        self.idle_timeout_s = settings.gateway.idle_timeout_s
        self._context: Context | None = None
        self._api = build_api(
            self._run, {*ENDPOINTS, PLAYGROUND_PATH, BESIDE_PATH} if has_playground(settings.gateway) else ENDPOINTS
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
        await self._read_new_key(scope)
        await self._api(scope, receive, with_request_id(send, request_id))

    async def _read_new_key(self, scope: Scope) -> None:
        """A key that another gateway made just now is known from its first request on."""
        given = next((value for name, value in scope["headers"] if name == b"authorization"), None)
        if given is not None and self.context.key_follower.may_find(given):
            await self.context.key_follower.look()

    @contextlib.asynccontextmanager
    async def _run(self, api: FastAPI) -> AsyncIterator[None]:
        async with (
            open_context(self._settings, self.secrets) as context,
            open_watchers(self._settings.gateway, context.metrics.registry) as self.make_call,
        ):
            self._context = api.state.context = context
            for build in (
                build_health_router,
                build_models_router,
                build_signals_router,
                build_operator_router,
                build_web_router,
                build_teaching_router,
            ):
                api.include_router(build(context))
            api.include_router(build_choices_router())
            api.include_router(build_document_router(api.routes))
            self.handlers |= build_handlers(context)
            if has_playground(self._settings.gateway):
                self.handlers[BESIDE_PATH] = count_refusals(context, build_beside_handler(context))
                self.handlers[PLAYGROUND_PATH] = count_refusals(context, build_playground_handler(context))
            self.note_unread = partial(record_unread, context)
            self.find_handler = partial(find_choice_handler, context)
            yield


@contextlib.asynccontextmanager
async def open_context(settings: GatewaySettings, secrets: Secrets) -> AsyncIterator[Context]:
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
        key_follower = KeyFollower(keys, database)
        stack.callback(key_follower.close)
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
        usage = UsageBook(writer, settings.gateway)
        stack.push_async_callback(usage.close)
        section = settings.gateway
        deployment = Deployment(
            section.fixed_engines, BreakerLimits.from_settings(section), is_open=bool(section.engine_names)
        )
        discovery = Discovery(section, deployment)
        upstream = Upstream(settings.gateway)
        stack.callback(upstream.close)
        metrics = Metrics()
        completions = CompletionRecorder(CompletionStore(settings.completions_database), settings, metrics.registry)
        completions.start()
        stack.push_async_callback(asyncio.to_thread, completions.close)
        metrics.watch_in_flight(lambda: deployment.counters.num_in_flight)
        swap = Swap(deployment, upstream, settings.gateway)
        membership = Membership(writer, deployment, swap, settings)
        await membership.join(is_alone=is_sqlite)
        stack.push_async_callback(membership.leave)
        controller = Controller(writer, swap, deployment, membership, settings)
        metrics.registry.register(StateCollector(deployment, membership, discovery, lambda: relay.state))
        metrics.registry.register(KeyCollector(usage, keys.find_name))
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
            key_follower=key_follower,
            metrics=metrics,
            recorder=ComparisonRecorder(writer),
            asks=AskLedger(settings.gateway.max_asks_per_user_day),
            scorer=ScorerClient(settings.gateway.scorer_url, upstream, metrics),
            upstream=upstream,
            relay=relay,
            completions=completions,
            limits=limits,
            usage=usage,
            shadows=ShadowQueue(),
            divergences=DivergenceSensor(deployment, upstream, lambda: controller.observations, metrics.registry),
        )
        notifier = Notifier(writer, membership, settings.gateway.notices, settings.policy, metrics.registry)
        stack.callback(context.shadows.close)
        stack.callback(context.divergences.close)
        shared_asks = SharedAsks(database, context.asks, section.skip_cooldown_s)
        screen = build_screen(writer, settings.rollout.harm_screen, controller)
        keep_days = settings.gateway.comparisons_keep_days
        loops = (
            upstream.run(),
            notifier.run(),
            discovery.run(),
            swap.run(),
            membership.run(),
            controller.run(),
            limits.run(),
            usage.run(),
            shared_asks.run(),
            key_follower.run(),
            *(() if screen is None else (screen.run(),)),
            *(() if keep_days is None else (Retention(writer, membership, keep_days, metrics.registry).run(),)),
        )
        for work in loops:
            stack.push_async_callback(_stop, asyncio.create_task(work))
        yield context


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        try:
            await task
        except Exception:
            logger.exception("a loop ended in an error")


def create_app(settings: GatewaySettings) -> Gateway:
    """The gateway as an ASGI app; makes the secrets if there are none. Raises SecretsError, MissingExtra."""
    check_tracing(settings.gateway)
    load_screen(settings.rollout.harm_screen)
    return Gateway(settings, load_secrets(settings.state_dir))


def main() -> int:
    """Run the gateway until SIGTERM or SIGINT; requests in flight may end first."""
    settings = load_settings(GatewaySettings)
    set_up_logging(settings.gateway.log_format)
    try:
        run_gateway(settings)
    except GatewayError as error:
        logger.error("%s", error)
        return 2
    except (DatabaseError, StoreUnavailable, SigningKeyError) as error:
        logger.error("%s", error)
        return 1
    return 0


def run_gateway(settings: GatewaySettings) -> None:
    """`main` by settings.

    Raises GatewayError; DatabaseError, StoreUnavailable, SigningKeyError for a database, store or keys that cannot be used.
    """
    section = settings.gateway
    settings.open_store(), read_trusted_keys(settings.trusted_keys_file)  # refused before anything is opened
    check_listening(section.host, section.secrets_configured)
    app = create_app(settings)
    wait_for_database(settings.gateway_database, section.database_wait_s)
    migrate_url(settings.gateway_database, "gateway")
    if app.secrets.is_new:
        where = locate_secret(settings.state_dir, ADMIN_KEY)
        print(f"admin key (shown once, kept in {where}): {app.secrets.admin_key}", flush=True)
    logger.info("listening on http://%s:%d, engines %s", section.host, section.port, ", ".join(section.engines))
    # uvicorn repeats the signal once it has stopped: a clean stop ends with status 0 all the same.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    build_server(app, host=section.host, port=section.port, drain_timeout_s=section.drain_timeout_s).run()
    logger.info("stopped")


if __name__ == "__main__":
    sys.exit(main())

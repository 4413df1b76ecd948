"""Opens a gateway's parts in the order in which they need each other, keeps their loops running, closes them backwards."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from functools import partial

from feedback.database import Writer, open_database
from feedback.outages import log_failure
from feedback.relay import Relay
from feedback.schema import migrate
from gateway.access.keys import KeyRing, ensure_admin_key
from gateway.access.limits.limiter import Limits
from gateway.access.secrets import Secrets
from gateway.engines.deployment import Deployment
from gateway.engines.engine import BreakerLimits
from gateway.engines.swap import Swap
from gateway.http.upstream import Upstream
from gateway.rollout.controller import Controller
from gateway.rollout.membership import Membership
from gateway.serving.context import Context
from gateway.serving.metrics import Metrics
from gateway.serving.pairs.asking import AskLedger
from gateway.serving.recording.completions import Completions
from gateway.serving.recording.recorder import Recorder
from gateway.serving.recording.store import CompletionStore
from gateway.settings import GatewaySettings
from gateway.siblings import Place, Siblings
from gateway.telemetry.rollout_metrics import RolloutCollector
from gateway.telemetry.state_metrics import StateCollector

logger = logging.getLogger("gateway")

_REFRESH_KEYS_S = 5.0


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
        deployment = Deployment(settings.gateway.engines, BreakerLimits.from_settings(settings.gateway))
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
        membership = Membership(writer, deployment, swap, settings)
        await membership.join(is_alone=is_sqlite)
        stack.push_async_callback(membership.leave)
        controller = Controller(writer, swap, deployment, membership, settings)
        metrics.registry.register(StateCollector(deployment, membership, lambda: relay.state))
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
        loops = (
            upstream.run(),
            swap.run(),
            membership.run(),
            controller.run(),
            limits.run(),
            _keep_keys_fresh(context),
        )
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

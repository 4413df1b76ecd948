"""The engines of whole models: which checkpoints want one, and which are there, said by whoever runs engines.

The gateway starts no process. It publishes what it needs, and keeps in the database what was registered, so that every
gateway and every restarted one knows. Promises that a checkpoint is published from its trial on until no live gateway
serves it or answers by it. Whether an engine really holds what it was registered for, the swap proves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from sqlalchemy import Column, Connection, Float, String, Table, Text, delete, insert, select

from feedback.database import Writer, metadata
from gateway.errors import RefusedAction
from gateway.tables.checkpoints import get_checkpoint, list_checkpoints
from gateway.tables.serving import get_serving

if TYPE_CHECKING:
    from gateway.settings import GatewaySettings
    from gateway.tables.checkpoints import CheckpointRow
    from gateway.tables.gateways import Report

_MAX_URL = 500
_NEEDED = ("canary", "stable", "baking", "draining")

engines = Table(
    "engines",
    metadata,
    Column("url", String(_MAX_URL), primary_key=True),
    Column("checkpoint", String(200), nullable=False),
    Column("registered_at", Float, nullable=False),
    Column("registered_by", Text, nullable=False),
)


@dataclass(frozen=True)
class RegisteredEngine:
    """An engine that was started with the weights of one checkpoint. registered_at in epoch seconds."""

    url: str
    checkpoint: str
    registered_at: float
    registered_by: str


_ENGINES = select(engines).order_by(engines.c.registered_at, engines.c.url)  # built once: it runs at every look


def list_engines(conn: Connection) -> list[RegisteredEngine]:
    """All of them, the oldest first."""
    rows = conn.execute(_ENGINES)
    return [RegisteredEngine(row.url, row.checkpoint, row.registered_at, row.registered_by) for row in rows]


def find_required(
    checkpoints: Sequence[CheckpointRow], stable: str | None, reports: Iterable[Report]
) -> list[CheckpointRow]:
    """The whole models that need an engine, in order of arrival: what serves, is on trial, drains or is still in use.

    stable: what serves by the tables; without any, the oldest that waits needs no trial. reports: of live gateways.
    """
    held = {name for report in reports for name in (*report.expected, *report.in_flight)}
    waiting = [row.id for row in checkpoints if row.status == "waiting"] if stable is None else []
    needed = {row.id for row in checkpoints if row.status in _NEEDED} | held | set(waiting[:1])
    return [row for row in checkpoints if row.id in needed and row.is_full]


def check_url(url: str) -> str:
    """The base URL of an engine without a slash at its end. Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("The URL must be http://host:port or https://host:port.")
    if parts.username or parts.password or parts.query or parts.fragment or not url.isascii() or not url.isprintable():
        raise ValueError("The URL may have no user, query or fragment.")
    if len(url) > _MAX_URL or " " in url:
        raise ValueError("The URL is too long, or has spaces.")
    _ = parts.port  # raises ValueError
    return url.rstrip("/")


class EngineRegistry:
    """The table of engines. on_change is called when an engine came or went."""

    def __init__(
        self, writer: Writer, settings: GatewaySettings, on_change: Callable[[], None], clock: Callable[[], float]
    ) -> None:
        self._writer, self._on_change, self._clock = writer, on_change, clock
        self._policy, self._fixed = settings.policy, {url.rstrip("/") for url in settings.gateway.fixed_engines}

    async def register(self, url: str, checkpoint: str, actor: str) -> tuple[RegisteredEngine, bool]:
        """An engine serves a checkpoint's weights under its id; returns (engine, whether it is new). Harmless to repeat.

        Raises ValueError, LookupError for an unknown checkpoint, RefusedAction if the URL has another use.
        """
        engine = RegisteredEngine(check_url(url), checkpoint, self._clock(), actor)
        if engine.url in self._fixed:
            raise RefusedAction(f"{engine.url} is an engine for adapters, by the settings.")

        def write(conn: Connection) -> tuple[RegisteredEngine, bool]:
            row = get_checkpoint(conn, checkpoint)
            if row is None:
                raise LookupError(checkpoint)
            if not row.is_full:
                raise ValueError(f"Checkpoint {checkpoint} is an adapter: it needs no engine of its own.")
            known = next((each for each in list_engines(conn) if each.url == engine.url), None)
            if known is not None and known.checkpoint != checkpoint:
                raise RefusedAction(f"{engine.url} is registered for {known.checkpoint}: withdraw it first.")
            if known is not None:
                return known, False
            values = {"url": engine.url, "checkpoint": checkpoint}
            conn.execute(insert(engines).values(registered_at=engine.registered_at, registered_by=actor, **values))
            return engine, True

        found = await self._writer.arun(write)
        self._on_change()
        return found

    async def withdraw(self, url: str) -> bool:
        """Nothing more goes to the engine; says whether it was registered. What is in flight ends."""
        where = engines.c.url == url.rstrip("/")
        was_there: bool = await self._writer.arun(lambda conn: conn.execute(delete(engines).where(where)).rowcount > 0)
        self._on_change()
        return was_there

    async def read(self, reports: Iterable[Report]) -> tuple[list[CheckpointRow], list[RegisteredEngine]]:
        """The models that need an engine, and the engines that are registered."""

        def read(conn: Connection) -> tuple[list[CheckpointRow], str | None, list[RegisteredEngine]]:
            stable = get_serving(conn, self._policy).stable
            return list_checkpoints(conn), stable, list_engines(conn)

        checkpoints, stable, registered = await self._writer.arun(read)
        return find_required(checkpoints, stable, reports), registered

"""What each key used on each day (UTC): answers, tokens and what they cost, kept for a year.

Counted in memory and added to the table every two seconds and at the end, so a gateway that is killed loses two seconds of its counts.
For bills and plots: what a key may still use is limits/'s to say. An answer counts on the day on which it ends, at the prices of then.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from feedback.database import Writer, metadata
from feedback.outages import log_failure
from gateway.sections.serving import GatewaySection

logger = logging.getLogger("gateway.usage")

_FLUSH_S = 2.0
_SWEEP_S = 3600.0
KEPT_DAYS = 400
_DAY_S = 86_400
_NANO = 1_000_000_000  # money is counted in billionths of the currency

key_usage = sa.Table(
    "key_usage",
    metadata,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True),  # days since 1970-01-01, UTC
    sa.Column("requests", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("spend_nano", sa.BigInteger, nullable=False),
    sa.Column("estimated", sa.BigInteger, nullable=False),
)
_COUNTS = ("requests", "prompt_tokens", "completion_tokens", "spend_nano", "estimated")


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What was used. requests: those that got an answer; spend: in the currency of the prices.

    estimated: requests whose tokens no engine said, counted by events and bytes.
    """

    requests: int = 0
    tokens: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    spend: float = 0.0
    estimated: int = 0


class UsageBook:
    """Belongs to one event loop. clock: epoch seconds. totals: of each key since this gateway's start, as in `_COUNTS`."""

    def __init__(self, writer: Writer, settings: GatewaySection, clock: Callable[[], float] = time.time) -> None:
        self._writer, self._clock = writer, clock
        self._prompt_nano = settings.price_per_million_prompt_tokens * _NANO / 1_000_000
        self._completion_nano = settings.price_per_million_completion_tokens * _NANO / 1_000_000
        self._pending: dict[tuple[str, int], list[int]] = {}
        self._next_sweep = 0.0
        self._storing: asyncio.Task[None] | None = None
        self.totals: dict[str, list[int]] = {}

    def add(self, key_id: str, prompt_tokens: int, completion_tokens: int, *, is_estimated: bool = False) -> None:
        """Count one answer."""
        place = (key_id, int(self._clock()) // _DAY_S)
        spend = round(prompt_tokens * self._prompt_nano + completion_tokens * self._completion_nano)
        for counts in (
            self._pending.get(place) or self._pending.setdefault(place, [0] * len(_COUNTS)),
            self.totals.get(key_id) or self.totals.setdefault(key_id, [0] * len(_COUNTS)),
        ):
            counts[0] += 1
            counts[1] += prompt_tokens
            counts[2] += completion_tokens
            counts[3] += spend
            counts[4] += is_estimated

    async def flush(self) -> None:
        """Add what was counted to the table; what cannot be added is kept for the next time. Raises what the writer does.

        Whoever waits may leave: the transaction goes on, and is not repeated.
        """
        while self._storing is not None and not self._storing.done():
            await asyncio.wait([self._storing])
        self._storing = asyncio.create_task(self._store())
        await asyncio.shield(self._storing)

    async def _store(self) -> None:
        pending, self._pending = self._pending, {}
        if not pending:
            return
        try:
            await self._writer.arun(lambda conn: add_usage(conn, pending))
        except Exception:
            for place, counts in pending.items():
                later = self._pending.get(place, [0] * len(_COUNTS))
                self._pending[place] = [a + b for a, b in zip(counts, later, strict=True)]
            raise

    async def run(self) -> None:
        """Flush until cancelled."""
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                await self.flush()
                if (now := self._clock()) >= self._next_sweep:
                    self._next_sweep = now + _SWEEP_S
                    await self._writer.arun(lambda conn: forget_usage(conn, now))
            except Exception as error:
                log_failure(logger, "the keys' usage could not be stored", error)

    async def close(self) -> None:
        """Store the rest. Stop `run` before, and the writer after."""
        try:
            await self.flush()
        except Exception as error:
            log_failure(logger, "the keys' last usage could not be stored", error)


def add_usage(conn: sa.Connection, counted: dict[tuple[str, int], list[int]]) -> None:
    """Add counts to the rows of their keys and days."""
    dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(key_usage)
    statement = statement.on_conflict_do_update(
        index_elements=["key_id", "day"],
        set_={name: key_usage.c[name] + statement.excluded[name] for name in _COUNTS},
    )
    rows = [
        {"key_id": key_id, "day": day, **dict(zip(_COUNTS, counts, strict=True))}
        for (key_id, day), counts in sorted(counted.items())  # gateways lock rows in one order
    ]
    conn.execute(statement, rows)


def forget_usage(conn: sa.Connection, now: float) -> None:
    """Delete what is older than a year and some weeks."""
    conn.execute(sa.delete(key_usage).where(key_usage.c.day < int(now) // _DAY_S - KEPT_DAYS))


def load_days(conn: sa.Connection, key_id: str, num_days: int, now: float) -> list[tuple[str, Usage]]:
    """The last days on which a key was used, today among them, oldest first: each with its date."""
    query = (
        sa.select(key_usage).where(key_usage.c.key_id == key_id, _is_within(num_days, now)).order_by(key_usage.c.day)
    )
    return [(format_day(row.day), _read(row)) for row in conn.execute(query)]


def load_totals(conn: sa.Connection, num_days: int, now: float) -> dict[str, Usage]:
    """What each key used in the last days, today among them."""
    sums = [sa.func.sum(key_usage.c[name]).label(name) for name in _COUNTS]
    query = sa.select(key_usage.c.key_id, *sums).where(_is_within(num_days, now)).group_by(key_usage.c.key_id)
    return {row.key_id: _read(row) for row in conn.execute(query)}


def sum_usage(parts: Iterable[Usage]) -> Usage:
    """All of them together."""
    found = list(parts)
    return Usage(**{name: sum(getattr(each, name) for each in found) for name in Usage.__struct_fields__})


def format_day(day: int) -> str:
    """`2026-01-31` of days since 1970."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=day)).date().isoformat()


def _is_within(num_days: int, now: float) -> sa.ColumnElement[bool]:
    return key_usage.c.day > int(now) // _DAY_S - num_days


def _read(row: sa.Row[tuple[int, ...]]) -> Usage:
    requests, prompt, completion, spend_nano, estimated = (int(getattr(row, name)) for name in _COUNTS)
    return Usage(
        requests=requests, tokens=prompt + completion, prompt_tokens=prompt, completion_tokens=completion,
        spend=spend_nano / _NANO, estimated=estimated,
    )  # fmt: skip

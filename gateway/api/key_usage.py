"""What keys used: by day for one, in sum for all."""

import time
from typing import Annotated, Literal

import msgspec

from gateway.access.key_usage import KEPT_DAYS, Usage, load_days, load_totals, sum_usage
from gateway.access.keys import Identity, find_key, list_keys
from gateway.api.routes import OperatorRoutes
from gateway.errors import not_found
from gateway.serving.context import Context


class LastDays(msgspec.Struct, frozen=True):
    """How many days (UTC), today among them."""

    days: Annotated[int, msgspec.Meta(ge=1, le=KEPT_DAYS)] = 30


class DayUsage(Usage, frozen=True, kw_only=True):
    """What was used on one day (UTC, ISO 8601)."""

    day: str


class KeyUsage(msgspec.Struct, frozen=True, kw_only=True):
    """What a key used: the days on which it was used, oldest first, and all of them together."""

    object: Literal["key.usage"] = "key.usage"
    id: str
    name: str
    app: str
    days: list[DayUsage]
    total: Usage


class KeyTotal(msgspec.Struct, frozen=True, kw_only=True):
    """What a key used in all of the days."""

    id: str
    name: str
    app: str
    total: Usage


class UsageSummary(msgspec.Struct, frozen=True, kw_only=True):
    """Every key that was used, the most tokens first, and all together. The playground's questions are under its own name."""

    object: Literal["list"] = "list"
    data: list[KeyTotal]
    total: Usage


def add_usage_routes(routes: OperatorRoutes, context: Context) -> None:
    """GET /operator/v1/keys/usage and /operator/v1/keys/{key_id}/usage."""

    @routes.add("GET", "/keys/usage", "Show what each key used in the last days", {200: UsageSummary}, query=LastDays)
    async def show_all(_: Identity, query: LastDays) -> UsageSummary:
        await context.usage.flush()
        totals, keys = await context.writer.aread(
            lambda conn: (load_totals(conn, query.days, time.time()), {row.id: row for row in list_keys(conn)})
        )
        data = [
            KeyTotal(
                id=key_id, name=keys[key_id].name if key_id in keys else key_id,
                app=keys[key_id].app if key_id in keys else key_id, total=total,
            )
            for key_id, total in sorted(totals.items(), key=lambda each: -each[1].tokens)
        ]  # fmt: skip
        return UsageSummary(data=data, total=sum_usage(totals.values()))

    @routes.add("GET", "/keys/{key_id}/usage", "Show what a key used by day", {200: KeyUsage}, 404, query=LastDays)
    async def show_one(_: Identity, key_id: str, query: LastDays) -> KeyUsage:
        await context.usage.flush()
        row, found = await context.writer.aread(
            lambda conn: (find_key(conn, key_id), load_days(conn, key_id, query.days, time.time()))
        )
        if row is None:
            raise not_found("There is no such key.", code="unknown_key")
        days = [DayUsage(day=day, **msgspec.structs.asdict(used)) for day, used in found]
        return KeyUsage(id=row.id, name=row.name, app=row.app, days=days, total=sum_usage(used for _, used in found))

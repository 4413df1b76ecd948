"""Makes, lists, limits and revokes API keys. All but listing needs the scope admin: no operator promotes itself."""

import asyncio
import time
from typing import Literal

import msgspec

from gateway.access.keys import (
    HOW_TO_REPLACE,
    PLAYGROUND_APP,
    Identity,
    KeyRow,
    LimitsChange,
    change_limits,
    create_key,
    key_id_of,
    list_keys,
    revoke_key,
)
from gateway.access.limits.allowance import KeyLimits
from gateway.api.routes import OperatorRoutes
from gateway.errors import ApiError, bad_request, not_found
from gateway.serving.context import Context

_MAX_NAME = 200


class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be made; `scope` is one or several, separated by spaces."""

    name: str
    scope: str = "app"
    pairs: bool = True  # as the command line makes them: whether to ask for pairs is each request's to say
    limits: KeyLimits | None = None


class KeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key's new limits."""

    limits: LimitsChange


class NewKey(KeyRow, frozen=True, kw_only=True):
    """A key that was made: the only time that the whole key is shown."""

    key: str


class KeyList(msgspec.Struct, frozen=True):
    """All keys, oldest first."""

    data: list[KeyRow]
    object: Literal["list"] = "list"


class RevokedKey(msgspec.Struct, frozen=True):
    """A key that works no more."""

    id: str
    object: Literal["key"] = "key"
    revoked: bool = True


def add_key_routes(routes: OperatorRoutes, context: Context) -> None:
    """GET, POST, PATCH and DELETE /operator/v1/keys."""

    @routes.add("GET", "/keys", "List the keys", {200: KeyList})
    async def show_keys(_: Identity) -> KeyList:
        def read() -> list[KeyRow]:
            with context.database.connect() as conn:
                return list_keys(conn)

        return KeyList(await asyncio.to_thread(read))

    @routes.add("POST", "/keys", "Make a key", {201: NewKey}, body=KeyRequest, scope="admin")
    async def add_key(_: Identity, body: KeyRequest) -> NewKey:
        if not body.name.strip() or len(body.name) > _MAX_NAME or not body.name.isprintable():
            raise bad_request(f"`name` must have 1 to {_MAX_NAME} printable characters.", param="name")
        if body.name.strip() == PLAYGROUND_APP:
            raise bad_request(f"`{PLAYGROUND_APP}` is the playground's own name.", param="name")
        _refuse_budget_without_prices(body.limits, context)
        try:
            key, row = await context.writer.arun(
                lambda conn: create_key(
                    conn,
                    context.secrets.pepper,
                    app=body.name.strip(),
                    scopes=frozenset(body.scope.split()),
                    pairs=body.pairs,
                    now=time.time(),
                    limits=body.limits,
                )
            )
        except ValueError as error:
            raise bad_request(str(error), param="scope") from None
        await asyncio.to_thread(context.keys.refresh, context.database)
        return NewKey(**msgspec.structs.asdict(row), key=key)

    @routes.add("PATCH", "/keys/{key_id}", "Change a key's limits", {200: KeyRow}, 404, body=KeyChange, scope="admin")
    async def change_key(_: Identity, key_id: str, body: KeyChange) -> KeyRow:
        _refuse_budget_without_prices(body.limits, context)
        row = await context.writer.arun(lambda conn: change_limits(conn, key_id, body.limits))
        if row is None:
            raise not_found("There is no such key.", code="unknown_key")
        await asyncio.to_thread(context.keys.refresh, context.database)
        return row

    @routes.add("DELETE", "/keys/{key_id}", "Revoke a key", {200: RevokedKey}, 404, 409, scope="admin")
    async def remove_key(_: Identity, key_id: str) -> RevokedKey:
        if key_id == key_id_of(context.secrets.admin_key):
            message = f"This is the admin key that the gateway was started with. {HOW_TO_REPLACE}"
            raise ApiError(409, message, code="current_admin_key")
        if not await context.writer.arun(lambda conn: revoke_key(conn, key_id, time.time())):
            raise not_found("There is no such key.", code="unknown_key")
        await asyncio.to_thread(context.keys.refresh, context.database)
        return RevokedKey(key_id)


def _refuse_budget_without_prices(limits: KeyLimits | LimitsChange | None, context: Context) -> None:
    """A budget that nothing is ever taken from is no limit, whatever its owner believes."""
    budgets = () if limits is None else (limits.budget_per_minute, limits.budget_per_day)
    if any(isinstance(budget, int | float) for budget in budgets) and not context.settings.gateway.has_prices:
        raise bad_request(
            "A budget needs prices: set gateway.price_per_million_prompt_tokens or"
            " gateway.price_per_million_completion_tokens first.",
            param="limits",
        )

"""Makes, lists, limits, rotates and revokes API keys. All but listing needs the scope admin: no operator promotes itself."""

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

import msgspec
from sqlalchemy import Connection

from gateway.access.key_usage import Usage, load_totals
from gateway.access.keys import (
    HOW_TO_REPLACE,
    PLAYGROUND_APP,
    Identity,
    KeyRow,
    LimitsChange,
    change_expiry,
    change_limits,
    create_key,
    find_key,
    key_id_of,
    list_keys,
    revoke_key,
    rotate_key,
)
from gateway.access.limits.allowance import KeyLimits
from gateway.api.routes import OperatorRoutes
from gateway.errors import ApiError, RefusedAction, bad_request, not_found
from gateway.serving.context import Context

_MAX_NAME = 200
_DAY_S = 86_400.0
_NEVER = 253_402_300_800.0  # the year 10000: whoever means milliseconds is told
_T = TypeVar("_T")


class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be made; `scope` is one or several, separated by spaces.

    `app`: whose users it speaks for, its name if nothing is said; keys of one app share them. `expires_at`: epoch seconds.
    """

    name: str
    app: str | None = None
    scope: str = "app"
    pairs: bool = True  # as the command line makes them: whether to ask for pairs is each request's to say
    limits: KeyLimits | None = None
    expires_at: float | None = None


class KeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key's new limits, or when it ends (epoch seconds; null: never). What is not given stays."""

    limits: LimitsChange | msgspec.UnsetType = msgspec.UNSET
    expires_at: float | msgspec.UnsetType | None = msgspec.UNSET


class Rotation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """For how long the key's present secret goes on working, in seconds: a day, unless said; at most 90 days."""

    grace_s: Annotated[float, msgspec.Meta(ge=0, le=90 * _DAY_S)] = _DAY_S


class NewKey(KeyRow, frozen=True, kw_only=True):
    """A key that was made, or got another secret: the only time that the whole key is shown."""

    key: str


class UsageToday(msgspec.Struct, frozen=True):
    """What was used since midnight, UTC."""

    today: Usage


class ListedKey(KeyRow, frozen=True, kw_only=True):
    """A key, and what it used today."""

    usage: UsageToday


class KeyList(msgspec.Struct, frozen=True):
    """All keys, oldest first."""

    data: list[ListedKey]
    object: Literal["list"] = "list"


class RevokedKey(msgspec.Struct, frozen=True):
    """A key that works no more."""

    id: str
    object: Literal["key"] = "key"
    revoked: bool = True


def add_key_routes(routes: OperatorRoutes, context: Context) -> None:
    """GET, POST and DELETE /operator/v1/keys."""

    @routes.add("GET", "/keys", "List the keys", {200: KeyList})
    async def show_keys(_: Identity) -> KeyList:
        await context.usage.flush()
        rows, today = await context.writer.aread(lambda conn: (list_keys(conn), load_totals(conn, 1, time.time())))
        return KeyList(
            [ListedKey(**msgspec.structs.asdict(row), usage=UsageToday(today.get(row.id, Usage()))) for row in rows]
        )

    @routes.add("POST", "/keys", "Make a key", {201: NewKey}, body=KeyRequest, scope="admin")
    async def add_key(_: Identity, body: KeyRequest) -> NewKey:
        name = _check_name(body.name, "name")
        app = name if body.app is None else _check_name(body.app, "app")
        _refuse_budget_without_prices(body.limits, context)
        _refuse_past(body.expires_at)
        try:
            key, row = await _change(
                context,
                lambda conn: create_key(
                    conn, context.secrets.pepper, app=app, scopes=frozenset(body.scope.split()), pairs=body.pairs,
                    now=time.time(), limits=body.limits, name=name, expires_at=body.expires_at,
                ),
            )  # fmt: skip
        except ValueError as error:
            raise bad_request(str(error), param="scope") from None
        return NewKey(**msgspec.structs.asdict(row), key=key)

    @routes.add("DELETE", "/keys/{key_id}", "Revoke a key", {200: RevokedKey}, 404, 409, scope="admin")
    async def remove_key(_: Identity, key_id: str) -> RevokedKey:
        _refuse_current_admin(context, key_id)
        _require(await _change(context, lambda conn: revoke_key(conn, key_id, time.time()) or None))
        return RevokedKey(key_id)


def add_key_change_routes(routes: OperatorRoutes, context: Context) -> None:
    """PATCH /operator/v1/keys/{key_id} and POST /operator/v1/keys/{key_id}:rotate."""

    @routes.add(
        "PATCH", "/keys/{key_id}", "Change a key's limits, or when it ends", {200: KeyRow}, 404, 409, body=KeyChange,
        scope="admin",
    )  # fmt: skip
    async def change_key(_: Identity, key_id: str, body: KeyChange) -> KeyRow:
        limits, expires_at = body.limits, body.expires_at
        if limits is msgspec.UNSET and expires_at is msgspec.UNSET:
            raise bad_request("Say `limits` or `expires_at`.")
        if limits is not msgspec.UNSET:
            _refuse_budget_without_prices(limits, context)
        if expires_at is not msgspec.UNSET:
            _refuse_current_admin(context, key_id)
            _refuse_past(expires_at)

        def write(conn: Connection) -> KeyRow | None:
            if expires_at is not msgspec.UNSET:
                change_expiry(conn, key_id, expires_at)
            return find_key(conn, key_id) if limits is msgspec.UNSET else change_limits(conn, key_id, limits)

        return _require(await _change(context, write))

    @routes.add(
        "POST", "/keys/{key_id}:rotate", "Give a key another secret; its app, limits and users stay", {200: NewKey}, 404,
        405, 409, body=Rotation, scope="admin",
    )  # fmt: skip
    async def rotate(_: Identity, key_id: str, body: Rotation) -> NewKey:
        _refuse_current_admin(context, key_id)
        pepper, now = context.secrets.pepper, time.time()
        try:
            key, row = _require(
                await _change(context, lambda conn: rotate_key(conn, pepper, key_id, body.grace_s, now))
            )
        except RefusedAction as error:
            raise ApiError(409, str(error), code="conflict") from None
        return NewKey(**msgspec.structs.asdict(row), key=key)


async def _change(context: Context, write: Callable[[Connection], _T]) -> _T:
    """Change keys, and know of it here at once."""
    done = await context.writer.arun(write)
    await asyncio.to_thread(context.keys.refresh, context.database)
    return done


def _refuse_current_admin(context: Context, key_id: str) -> None:
    if key_id == key_id_of(context.secrets.admin_key):
        message = f"This is the admin key that the gateway was started with. {HOW_TO_REPLACE}"
        raise ApiError(409, message, code="current_admin_key")


def _require(found: _T | None) -> _T:
    if found is None:
        raise not_found("There is no such key.", code="unknown_key")
    return found


def _check_name(name: str, param: str) -> str:
    """Raises ApiError 400 for what could not be a key's name, or its app's."""
    if not name.strip() or len(name) > _MAX_NAME or not name.isprintable():
        raise bad_request(f"`{param}` must have 1 to {_MAX_NAME} printable characters.", param=param)
    if name.strip() == PLAYGROUND_APP:
        raise bad_request(f"`{PLAYGROUND_APP}` is the playground's own name.", param=param)
    return name.strip()


def _refuse_past(expires_at: float | None) -> None:
    if expires_at is not None and not time.time() < expires_at < _NEVER:
        raise bad_request("`expires_at` must be a time to come, in epoch seconds; null is never.", param="expires_at")


def _refuse_budget_without_prices(limits: KeyLimits | LimitsChange | None, context: Context) -> None:
    """A budget that nothing is ever taken from is no limit, whatever its owner believes."""
    budgets = () if limits is None else (limits.budget_per_minute, limits.budget_per_day)
    if any(isinstance(budget, int | float) for budget in budgets) and not context.settings.gateway.has_prices:
        raise bad_request(
            "A budget needs prices: set gateway.price_per_million_prompt_tokens or"
            " gateway.price_per_million_completion_tokens first.",
            param="limits",
        )

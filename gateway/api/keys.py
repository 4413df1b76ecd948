"""Makes, lists, limits and revokes API keys. All but listing needs the scope admin: no operator promotes itself."""

from __future__ import annotations

import asyncio
import time
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.access.auth import require_scope
from gateway.access.keys import LimitsChange, change_limits, create_key, list_keys, revoke_key
from gateway.access.limits.allowance import KeyLimits
from gateway.api.request_body import read_body
from gateway.errors import bad_request, not_found
from gateway.serving.context import Context

_MAX_BODY_BYTES = 16_384
_MAX_NAME = 200

T = TypeVar("T")


class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of POST; `scope` is one or several, separated by spaces."""

    name: str
    scope: str = "app"
    pairs: bool = True  # as the command line makes them: whether to ask for pairs is each request's to say
    limits: KeyLimits | None = None


class KeyChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of PATCH."""

    limits: LimitsChange


def build_keys_router(context: Context) -> APIRouter:
    """GET, POST, PATCH and DELETE /operator/v1/keys."""
    router = APIRouter()

    @router.get("/operator/v1/keys")
    async def show_keys(request: Request) -> Response:
        require_scope(request, "operator")

        def read() -> object:
            with context.database.connect() as conn:
                return list_keys(conn)

        return _json({"object": "list", "data": await asyncio.to_thread(read)})

    @router.post("/operator/v1/keys")
    async def add_key(request: Request) -> Response:
        require_scope(request, "admin")
        asked = _parse(await read_body(request, _MAX_BODY_BYTES), KeyRequest)
        if not asked.name.strip() or len(asked.name) > _MAX_NAME or not asked.name.isprintable():
            raise bad_request(f"`name` must have 1 to {_MAX_NAME} printable characters.", param="name")
        _refuse_budget_without_prices(asked.limits, context)
        try:
            key, row = await context.writer.arun(
                lambda conn: create_key(
                    conn,
                    context.secrets.pepper,
                    app=asked.name.strip(),
                    scopes=frozenset(asked.scope.split()),
                    pairs=asked.pairs,
                    now=time.time(),
                    limits=asked.limits,
                )
            )
        except ValueError as error:
            raise bad_request(str(error), param="scope") from None
        await asyncio.to_thread(context.keys.refresh, context.database)
        return _json({**msgspec.to_builtins(row), "key": key}, status=201)

    @router.patch("/operator/v1/keys/{key_id}")
    async def change_key(key_id: str, request: Request) -> Response:
        require_scope(request, "admin")
        asked = _parse(await read_body(request, _MAX_BODY_BYTES), KeyChange)
        _refuse_budget_without_prices(asked.limits, context)
        row = await context.writer.arun(lambda conn: change_limits(conn, key_id, asked.limits))
        if row is None:
            raise not_found("There is no such key.", code="unknown_key")
        await asyncio.to_thread(context.keys.refresh, context.database)
        return _json(row)

    @router.delete("/operator/v1/keys/{key_id}")
    async def remove_key(key_id: str, request: Request) -> Response:
        require_scope(request, "admin")
        if not await context.writer.arun(lambda conn: revoke_key(conn, key_id, time.time())):
            raise not_found("There is no such key.", code="unknown_key")
        await asyncio.to_thread(context.keys.refresh, context.database)
        return _json({"id": key_id, "object": "key", "revoked": True})

    return router


def _refuse_budget_without_prices(limits: KeyLimits | LimitsChange | None, context: Context) -> None:
    """A budget that nothing is ever taken from is no limit, whatever its owner believes."""
    budgets = () if limits is None else (limits.budget_per_minute, limits.budget_per_day)
    if any(isinstance(budget, int | float) for budget in budgets) and not context.settings.gateway.has_prices:
        raise bad_request(
            "A budget needs prices: set gateway.price_per_million_prompt_tokens or"
            " gateway.price_per_million_completion_tokens first.",
            param="limits",
        )


def _parse(body: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"Invalid key request: {error}.") from None


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")

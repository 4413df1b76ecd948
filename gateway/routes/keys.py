"""Makes, lists and revokes API keys. Making and revoking need the scope admin: an operator must not promote itself."""

from __future__ import annotations

import asyncio
import time

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.auth import require_scope
from gateway.context import Context
from gateway.errors import bad_request, not_found
from gateway.keys import create_key, list_keys, revoke_key
from gateway.requests import read_body

_MAX_BODY_BYTES = 16_384
_MAX_NAME = 200


class KeyRequest(msgspec.Struct, frozen=True):
    """The body of POST; `scope` is one or several, separated by spaces."""

    name: str
    scope: str = "app"
    pairs: bool = False


def build_keys_router(context: Context) -> APIRouter:
    """GET, POST and DELETE /operator/v1/keys."""
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
        asked = _parse(await read_body(request, _MAX_BODY_BYTES))
        try:
            key, row = await context.writer.arun(
                lambda conn: create_key(
                    conn,
                    context.secrets.pepper,
                    app=asked.name.strip(),
                    scopes=frozenset(asked.scope.split()),
                    pairs=asked.pairs,
                    now=time.time(),
                )
            )
        except ValueError as error:
            raise bad_request(str(error), param="scope") from None
        await asyncio.to_thread(context.keys.refresh, context.database)
        return _json({**msgspec.to_builtins(row), "key": key}, status=201)

    @router.delete("/operator/v1/keys/{key_id}")
    async def remove_key(key_id: str, request: Request) -> Response:
        require_scope(request, "admin")
        if not await context.writer.arun(lambda conn: revoke_key(conn, key_id, time.time())):
            raise not_found("There is no such key.", code="unknown_key")
        await asyncio.to_thread(context.keys.refresh, context.database)
        return _json({"id": key_id, "object": "key", "revoked": True})

    return router


def _parse(body: bytes) -> KeyRequest:
    try:
        asked = msgspec.json.decode(body, type=KeyRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise bad_request(f"Invalid key request: {error}.") from None
    if not asked.name.strip() or len(asked.name) > _MAX_NAME:
        raise bad_request(f"`name` must have 1 to {_MAX_NAME} characters.", param="name")
    return asked


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")

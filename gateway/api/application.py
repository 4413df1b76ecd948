"""What FastAPI answers: every error in OpenAI's shape. Everything but the hot path goes through it."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Any

from fastapi import FastAPI, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Send

from feedback.errors import DatabaseError
from gateway.api.request_body import ClientGone
from gateway.errors import ApiError, error_body, unavailable

logger = logging.getLogger("gateway")


def build_api(lifespan: Any, engine_paths: Collection[bytes]) -> FastAPI:
    """FastAPI with errors in OpenAI's shape; routes are added once the context is there.

    `engine_paths`: what the server's protocol answers to POST.
    """
    api = FastAPI(title="prefloop", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    api.router.redirect_slashes = False

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, ApiError)
        return _refuse(error)

    async def refuse_route(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if request.url.path.encode() in engine_paths:
            return Response(error_body(405, "This address takes POST."), 405, {"allow": "POST"}, "application/json")
        message = {404: "There is no such address.", 405: "This address takes other methods."}.get(error.status_code)
        body = error_body(error.status_code, message or str(error.detail))
        return Response(body, error.status_code, headers=error.headers, media_type="application/json")

    async def forget(request: Request, error: Exception) -> Response:
        return Response(status_code=499)  # nobody is there to read it

    async def refuse_for_now(request: Request, error: Exception) -> Response:
        logger.error("%s %s: the database failed: %s", request.method, request.url.path, error)
        return _refuse(unavailable("The database cannot be used now."))

    async def fail(request: Request, error: Exception) -> Response:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Response(error_body(500, "Internal error."), 500, media_type="application/json")

    api.add_exception_handler(ApiError, refuse)
    api.add_exception_handler(HTTPException, refuse_route)
    api.add_exception_handler(ClientGone, forget)
    api.add_exception_handler(ClientDisconnect, forget)
    api.add_exception_handler(DatabaseError, refuse_for_now)
    api.add_exception_handler(SQLAlchemyError, refuse_for_now)
    api.add_exception_handler(Exception, fail)
    return api


def _refuse(error: ApiError) -> Response:
    return Response(error.body(), error.status, headers=error.headers, media_type="application/json")


def with_request_id(send: Send, request_id: str) -> Send:
    """`send`, with x-request-id on the answer."""

    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["x-request-id"] = request_id
        await send(message)

    return send_with_id

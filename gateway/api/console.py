"""Signs operators in and out of the console, and passes a round's report on to whoever is signed in."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from gateway.access.auth import authenticate_operator
from gateway.access.clients import find_request_client
from gateway.access.keys import Identity
from gateway.access.session import COOKIE_NAME, SESSION_TTL_S, WebSession, read_session, sign_session
from gateway.api.playground import refuse_other_sites
from gateway.api.request_body import decode_body, read_body
from gateway.api.trainer_client import TrainerProblem, fetch_from_trainer
from gateway.errors import forbidden, not_found, unauthorized, unavailable

if TYPE_CHECKING:
    from gateway.serving.context import Context

_MAX_SIGN_IN_BYTES = 4096
_NO_STORE = {"cache-control": "no-store"}
_REPORT_HEADERS = _NO_STORE | {
    # The report's own styles and nothing else: it shows what people and policies wrote.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
}


class SignIn(msgspec.Struct):
    """The key that an operator signs in with."""

    key: str


def add_console_routes(router: APIRouter, context: Context) -> None:
    """The session, and reports of rounds."""

    @router.get("/console/session")
    async def show_session(request: Request) -> Response:
        return _session_response(*_find_session(request, context))

    @router.post("/console/session")
    async def sign_in(request: Request) -> Response:
        _refuse_other_sites(request)
        identity = _check_operator(await read_body(request, _MAX_SIGN_IN_BYTES), context)
        cookie, session = sign_session(identity.key_id, context.secrets.token_key, now=time.time())
        response = _session_response(session, identity)
        response.set_cookie(
            COOKIE_NAME,
            cookie,
            max_age=SESSION_TTL_S,
            httponly=True,
            samesite="strict",
            secure=find_request_client(request, context.settings.gateway.trusted_proxies).is_https,
        )
        return response

    @router.delete("/console/session")
    async def sign_out(request: Request) -> Response:
        _refuse_other_sites(request)
        response = _session_response(None, None)
        response.delete_cookie(COOKIE_NAME, httponly=True, samesite="strict")
        return response

    @router.get("/console/rounds/{number:int}/report")
    async def show_report(number: int, request: Request) -> Response:
        authenticate_operator(request, context.keys, context.secrets, "operator")
        try:
            report = await fetch_from_trainer(context, f"/rounds/{number}/report")
        except TrainerProblem as problem:
            if problem.status == 404:
                raise not_found(f"Round {number} has no report.") from problem
            raise unavailable(str(problem)) from problem
        return Response(report, media_type="text/html; charset=utf-8", headers=_REPORT_HEADERS)


def _check_operator(raw: bytes, context: Context) -> Identity:
    given = decode_body(raw, msgspec.json.Decoder(SignIn).decode, "sign-in")
    identity = context.keys.check(given.key)
    if identity is None:
        raise unauthorized("This key is unknown or was revoked.")
    if not identity.may("operator"):
        raise forbidden("This key may not operate rollouts: it needs the scope operator or admin.")
    return identity


def _find_session(request: Request, context: Context) -> tuple[WebSession | None, Identity | None]:
    """The session that is signed in, and whose it is."""
    session = read_session(request.cookies.get(COOKIE_NAME), context.secrets.token_key)
    identity = None if session is None else context.keys.by_id(session.key_id)
    return (session, identity) if identity is not None and identity.may("operator") else (None, None)


def _session_response(session: WebSession | None, identity: Identity | None) -> JSONResponse:
    """Never an error: a page that finds nobody signed in shows its form. is_admin: what the page may offer."""
    content: dict[str, Any] = {"object": "console.session", "signed_in": session is not None}
    if session is not None and identity is not None:
        content |= {
            "csrf": session.csrf,
            "key_id": session.key_id,
            "name": identity.app,
            "is_admin": identity.may("admin"),
            "expires_at": session.expires_at,
        }
    return JSONResponse(content, headers=_NO_STORE)


def _refuse_other_sites(request: Request) -> None:
    refuse_other_sites(lambda name: request.headers.get(name.decode()))

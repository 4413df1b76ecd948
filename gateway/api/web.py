"""Serves the playground, the console and their files, and signs operators in.

What the playground asks goes through playground.py.
Every page comes with a strict content security policy: no inline script or style, nothing from elsewhere.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from gateway.access.clients import find_request_client
from gateway.access.keys import Identity
from gateway.access.session import COOKIE_NAME, SESSION_TTL_S, WebSession, read_session, sign_session
from gateway.api.playground import has_playground, refuse_other_sites
from gateway.api.request_body import decode_body, read_body
from gateway.errors import forbidden, not_found, unauthorized

if TYPE_CHECKING:
    from gateway.serving.context import Context

_logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).resolve().parent.parent / "web"
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_EMBEDDABLE = "compare"  # what other sites load: <prefloop-compare>, whose files begin so
_MAX_EXAMPLES = 100
_MAX_SIGN_IN_BYTES = 4096

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class SignIn(msgspec.Struct):
    """The key that an operator signs in with."""

    key: str


@dataclass(frozen=True)
class WebFile:
    """One file of the pages, read at start."""

    content: bytes
    media_type: str
    etag: str


def load_web_files(folder: Path = _FOLDER) -> dict[str, WebFile]:
    """Read the pages' files by name: the only names that are ever served."""
    files = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            files[path.name] = WebFile(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:16]}"')
    return files


def read_examples(base_model: Path) -> list[str]:
    """Return the example questions that the base model's directory brings along; none if it brings none."""
    try:
        examples = msgspec.json.decode((base_model / "examples.json").read_bytes(), type=list[str])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError) as error:
        _logger.warning("examples.json cannot be read: %s", error)
        return []
    return examples[:_MAX_EXAMPLES]


def build_web_router(context: Context) -> APIRouter:
    """Return the routes of the two pages."""
    router = APIRouter(include_in_schema=False)
    files = load_web_files()
    settings = context.settings

    @router.get("/")
    async def show_playground(request: Request) -> Response:
        if not has_playground(settings.gateway):
            return RedirectResponse("/console", 307)
        return _send_file(files["playground.html"], request)

    @router.get("/console")
    async def show_console(request: Request) -> Response:
        return _send_file(files["console.html"], request)

    @router.get("/web/{name}")
    async def show_file(name: str, request: Request) -> Response:
        file = files.get(name)
        if file is None or name.endswith(".html"):
            raise not_found("There is no such file.")
        return _send_file(file, request, is_embeddable=name.startswith(_EMBEDDABLE))

    @router.get("/playground/examples")
    def list_examples() -> Response:
        return JSONResponse(
            {"object": "list", "data": read_examples(Path(settings.base))}, headers={"cache-control": "no-store"}
        )

    @router.get("/console/session")
    async def show_session(request: Request) -> Response:
        session = _current_session(request, context)
        return _session_response(session)

    @router.post("/console/session")
    async def sign_in(request: Request) -> Response:
        _refuse_other_sites(request)
        identity = _check_operator(await read_body(request, _MAX_SIGN_IN_BYTES), context)
        cookie, session = sign_session(identity.key_id, context.secrets.token_key, now=time.time())
        response = _session_response(session)
        response.set_cookie(
            COOKIE_NAME,
            cookie,
            max_age=SESSION_TTL_S,
            httponly=True,
            samesite="strict",
            secure=find_request_client(request, settings.gateway.trusted_proxies).is_https,
        )
        return response

    @router.delete("/console/session")
    async def sign_out(request: Request) -> Response:
        _refuse_other_sites(request)
        response = _session_response(None)
        response.delete_cookie(COOKIE_NAME, httponly=True, samesite="strict")
        return response

    return router


def _check_operator(raw: bytes, context: Context) -> Identity:
    given = decode_body(raw, msgspec.json.Decoder(SignIn).decode, "sign-in")
    identity = context.keys.check(given.key)
    if identity is None:
        raise unauthorized("This key is unknown or was revoked.")
    if not identity.may("operator"):
        raise forbidden("This key may not operate rollouts: it needs the scope operator or admin.")
    return identity


def _current_session(request: Request, context: Context) -> WebSession | None:
    session = read_session(request.cookies.get(COOKIE_NAME), context.secrets.token_key)
    identity = None if session is None else context.keys.by_id(session.key_id)
    return session if identity is not None and identity.may("operator") else None


def _session_response(session: WebSession | None) -> JSONResponse:
    """Never an error: a page that finds nobody signed in shows its form."""
    content: dict[str, Any] = {"object": "console.session", "signed_in": session is not None}
    if session is not None:
        content |= {"csrf": session.csrf, "key_id": session.key_id, "expires_at": session.expires_at}
    return JSONResponse(content, headers={"cache-control": "no-store"})


def _refuse_other_sites(request: Request) -> None:
    refuse_other_sites(lambda name: request.headers.get(name.decode()))


def _send_file(file: WebFile, request: Request, *, is_embeddable: bool = False) -> Response:
    headers = dict(SECURITY_HEADERS) | {"etag": file.etag, "cache-control": "no-cache"}
    if is_embeddable:
        headers |= {"access-control-allow-origin": "*", "cross-origin-resource-policy": "cross-origin"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)

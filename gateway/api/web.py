"""Serves the playground, the console and their files, and signs operators in.

What the playground asks goes through playground.py.
Every page comes with a strict content security policy: no inline script or style, nothing from elsewhere.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from gateway.api.console import add_console_routes
from gateway.api.playground import has_playground
from gateway.api.web_files import WebFile, build_console_pages, load_web_files
from gateway.errors import not_found

if TYPE_CHECKING:
    from gateway.serving.context import Context

_logger = logging.getLogger(__name__)

_EMBEDDABLE = "compare"  # what other sites load: <prefloop-compare>, whose files begin so
_MAX_EXAMPLES = 100

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
    """Return the routes of the playground's page, the console's pages, and their files."""
    router = APIRouter(include_in_schema=False)
    files = load_web_files()
    pages = build_console_pages(files)
    settings = context.settings

    @router.get("/")
    async def show_playground(request: Request) -> Response:
        if not has_playground(settings.gateway):
            return RedirectResponse("/console", 307)
        return _send_file(files["playground.html"], request)

    async def show_page(request: Request) -> Response:
        return _send_file(pages[request.url.path], request)

    for address in pages:
        router.add_api_route(address, show_page)

    @router.get("/web/{name:path}")
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

    add_console_routes(router, context)
    return router


def _send_file(file: WebFile, request: Request, *, is_embeddable: bool = False) -> Response:
    headers = dict(SECURITY_HEADERS) | {"etag": file.etag, "cache-control": "no-cache"}
    if is_embeddable:
        headers |= {"access-control-allow-origin": "*", "cross-origin-resource-policy": "cross-origin"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)

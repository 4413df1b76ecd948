"""The gateway's OpenAPI 3.1 document: FastAPI's routes, and the paths that its server answers outside of FastAPI.

Says every status and content type that can occur. The pages and what only they call are left out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from starlette.responses import Response
from starlette.routing import BaseRoute

from gateway.api.choices import CHOICE_PATH
from gateway.api.operations import OPERATIONS, REFUSALS, TAGS, Operation
from gateway.api.schemas import Schema, build_schemas, ref
from gateway.serving.endpoints import ENDPOINTS

_DESCRIPTION = """A model-serving gateway that keeps learning: OpenAI's API, and comparisons to be answered by people.

Every answer carries `x-request-id`: the client's own if it sent a harmless one, else a new one. Every error has the
shape of OpenAI's. An address that is asked by another method answers 405."""

_HEADERS: dict[str, Schema] = {
    "x-prefloop-user": {
        "description": "The app's name for its user, who keeps an arm during a rollout; stored as a keyed hash.",
        "schema": {"type": "string"},
    },
    "x-prefloop-conversation": {
        "description": "The app's name for the conversation; else it is known by its first messages.",
        "schema": {"type": "string"},
    },
    "x-prefloop-compare": {
        "description": "Whether two answers may come: by the rates and caps, in any case, or never.",
        "schema": {"type": "string", "enum": ["auto", "always", "never"], "default": "never"},
    },
    "idempotency-key": {
        "description": "Makes repeats harmless: the same request under the same key gets the stored answer.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255},
    },
    "x-request-id": {
        "description": "The client's own id of the request; ids that do not match the pattern are replaced.",
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
}
_COMPARISON_ID = {"name": "comparison_id", "in": "path", "required": True, "schema": {"type": "string"}}
_RETRY_AFTER = {"retry-after": {"description": "Seconds.", "required": True, "schema": {"type": "string"}}}
_RATE_LIMITS: dict[str, Schema] = {
    f"x-ratelimit-{kind}-{what}": {"description": "For keys with limits.", "schema": {"type": "string"}}
    for kind in ("limit", "remaining", "reset")
    for what in ("requests", "tokens")
}
_ANSWER_HEADERS: dict[int, dict[str, Schema]] = {
    401: {"www-authenticate": {"required": True, "schema": {"const": "Bearer"}}},
    405: {"allow": {"required": True, "schema": {"type": "string"}}},
    429: _RETRY_AFTER | _RATE_LIMITS,
    503: _RETRY_AFTER,
}


def build_document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document for FastAPI's `routes`. Raises ValueError if an address is not described, or is not there."""
    made = get_openapi(title="prefloop", version=version("prefloop"), openapi_version="3.1.0", routes=routes)
    paths: dict[str, dict[str, Any]] = made["paths"]
    for path in ENDPOINTS:
        paths[path.decode()] = {"post": {}}
    paths[CHOICE_PATH] = {"post": {"parameters": [_COMPARISON_ID]}}
    found = {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}
    if odd := found ^ OPERATIONS.keys():
        raise ValueError(f"openapi_operations.py and the routes differ: {', '.join(sorted(odd))}")
    schemas = made.get("components", {}).get("schemas", {}) | build_schemas()
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)  # refused with 400 in OpenAI's shape
    return {
        "openapi": made["openapi"],
        "info": made["info"] | {"description": _DESCRIPTION},
        "tags": [{"name": name, "description": description} for name, description in TAGS.items()],
        "paths": {
            path: {method: _describe(f"{method.upper()} {path}", known) for method, known in methods.items()}
            for path, methods in sorted(paths.items())
        },
        "components": {
            "schemas": dict(sorted(schemas.items())),
            "parameters": {name: {"name": name, "in": "header"} | header for name, header in _HEADERS.items()},
            "responses": {f"Refused{status}": _describe_refusal(status) for status in REFUSALS},
            "headers": {"x-request-id": {"required": True, "schema": _HEADERS["x-request-id"]["schema"]}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "`pl_…`"}},
        },
    }


def build_document_router(routes: Sequence[BaseRoute]) -> APIRouter:
    """GET /openapi.json, of `routes` and itself."""
    router = APIRouter()

    @router.get("/openapi.json")
    async def show_document() -> Response:
        return Response(document, media_type="application/json")

    document = msgspec.json.encode(build_document([*routes, *router.routes]))
    return router


def _describe(name: str, known: dict[str, Any]) -> dict[str, Any]:
    operation = OPERATIONS[name]
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", name.lower()).strip("_"),
        "parameters": known.get("parameters", [])
        + [{"$ref": f"#/components/parameters/{header}"} for header in (*operation.headers, "x-request-id")],
        "responses": {str(status): _describe_answer(operation, status) for status in operation.answers}
        | {str(status): {"$ref": f"#/components/responses/Refused{status}"} for status in sorted(operation.refusals)},
        "security": [{"key": []}] if operation.needs_key else [],
    }
    if operation.body:
        content = {"application/json": {"schema": ref(operation.body)}}
        described["requestBody"] = {"required": True, "content": content}
    elif "requestBody" in known:
        described["requestBody"] = known["requestBody"]
    return described


def _describe_answer(operation: Operation, status: int) -> dict[str, Any]:
    name = operation.answers[status]
    content: dict[str, Any] = {"text/plain" if operation.is_text else "application/json": {"schema": ref(name)}}
    if operation.may_stream:
        content["text/event-stream"] = {"schema": ref("Event")}
    headers = _ANSWER_HEADERS.get(status, {}) | (_RATE_LIMITS if 429 in operation.refusals else {})
    return {"description": f"{operation.summary}.", "headers": _with_request_id(headers), "content": content}


def _describe_refusal(status: int) -> dict[str, Any]:
    return {
        "description": REFUSALS[status],
        "headers": _with_request_id(_ANSWER_HEADERS.get(status, {})),
        "content": {"application/json": {"schema": ref("Error")}},
    }


def _with_request_id(headers: dict[str, Schema]) -> dict[str, Schema]:
    return {"x-request-id": {"$ref": "#/components/headers/x-request-id"}} | headers

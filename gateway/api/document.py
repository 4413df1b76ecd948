"""The gateway's OpenAPI 3.1 document, made of the Structs that routes take and return.

Says every status and content type that can occur. The pages and what only they call are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.routing import BaseRoute

from feedback.json_schema import describe_types
from gateway.api import engine_bodies as bodies
from gateway.api.choices import CHOICE_PATH, ChoiceAnswer, ChoiceRequest
from gateway.api.routes import APPS, MACHINES, OF_ANY, OF_KEYS, OPERATORS, Operation, add_route
from gateway.errors import ErrorBody
from gateway.serving.endpoints import ENDPOINTS

Schema = dict[str, Any]

_DESCRIPTION = """A model-serving gateway that keeps learning: OpenAI's API, and comparisons to be answered by people.

Every answer carries `x-request-id`: the client's own if it sent a harmless one, else a new one. Every error has the
shape of OpenAI's. An address that is asked by another method answers 405."""

_TAGS = {
    APPS: "What apps call, most of it as OpenAI's API has it.",
    OPERATORS: "Checkpoints, rollouts and keys: needs a key of scope operator or admin.",
    MACHINES: "What monitoring and makers of clients read.",
}
_REFUSALS = {
    400: "The request is not valid; `param` names what is wrong with it.",
    401: "The key, or the comparison's token, is missing or wrong.",
    403: "The key lacks the scope.",
    404: "There is no such thing, or the engine's model cannot do this.",
    405: "This address takes other methods.",
    408: "The request did not come in time.",
    409: "Something else has happened or was said before.",
    410: "The comparison has expired.",
    413: "The body is too large.",
    422: "The engine cannot do what is asked for, or an idempotency key was used for something else.",
    429: "A limit of the key is used up.",
    431: "The head of the request is too large.",
    503: "Nobody can answer or store it now: ask again.",
    504: "The engine did not answer in time.",
}
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
_WHO = ("x-prefloop-user", "x-prefloop-conversation")


def _engine(summary: str, body: type, answer: type, *headers: str, may_stream: bool = False) -> Operation:
    """What an engine answers to an app's key."""
    refusals = OF_ANY | OF_KEYS | {404, 413, 422, 429, 503, 504}
    return Operation(
        tag=APPS, summary=summary, answers={200: answer}, refusals=refusals, body=body, headers=(*_WHO, *headers),
        may_stream=may_stream,
    )  # fmt: skip


_OUTSIDE_FASTAPI = {  # what the server's protocol answers itself
    "/v1/chat/completions": _engine(
        "Answer a conversation, once or with two candidates to compare",
        bodies.ChatRequest, bodies.ChatCompletion, "x-prefloop-compare", may_stream=True,
    ),
    "/v1/completions": _engine("Complete a text", bodies.CompletionRequest, bodies.Completion, may_stream=True),
    "/v1/embeddings": _engine("Embed texts", bodies.EmbeddingRequest, bodies.EmbeddingList),
    "/v1/responses": _engine("Answer, stateless", bodies.ResponsesRequest, bodies.ModelResponse, may_stream=True),
    "/tokenize": _engine("Split a text into tokens", bodies.TokenizeRequest, bodies.TokenList),
    "/detokenize": _engine("Make a text of tokens", bodies.DetokenizeRequest, bodies.Text),
    CHOICE_PATH: Operation(
        tag=APPS, summary="Say which of two answers is better; the comparison's token authorises",
        answers={200: ChoiceAnswer}, refusals=OF_ANY | {401, 404, 409, 410, 413, 503}, body=ChoiceRequest,
        needs_key=False,
    ),
}  # fmt: skip
_DOCUMENT = Operation(
    tag=MACHINES, summary="Show this document", answers={200: dict[str, Any]}, refusals=OF_ANY, needs_key=False
)


def build_document_router(routes: Sequence[BaseRoute]) -> APIRouter:
    """GET /openapi.json, of these routes and itself."""
    router = APIRouter()

    @add_route(router, "GET", "/openapi.json", _DOCUMENT)
    async def show_document() -> Response:
        return Response(document, media_type="application/json")

    document = msgspec.json.encode(build_document([*routes, *router.routes]))
    return router


def build_document(routes: Sequence[BaseRoute]) -> dict[str, Any]:
    """The document. Raises ValueError if a path to engines is not described, or is not there."""
    if odd := {path.decode() for path in ENDPOINTS} ^ (_OUTSIDE_FASTAPI.keys() - {CHOICE_PATH}):
        raise ValueError(f"the document and the endpoints differ: {', '.join(sorted(odd))}")
    operations = [*_list_operations(routes), *(("POST", path, each) for path, each in _OUTSIDE_FASTAPI.items())]
    schemas = _Schemas(operation for _, _, operation in operations)
    paths: dict[str, dict[str, Any]] = {}
    for method, path, operation in sorted(operations, key=lambda each: each[:2]):
        paths.setdefault(path, {})[method.lower()] = _describe(method, path, operation, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "prefloop", "version": version("prefloop"), "description": _DESCRIPTION},
        "tags": [{"name": name, "description": description} for name, description in _TAGS.items()],
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "parameters": {name: {"name": name, "in": "header"} | header for name, header in _HEADERS.items()},
            "responses": {f"Refused{status}": _describe_refusal(status, schemas) for status in _REFUSALS},
            "headers": {"x-request-id": {"required": True, "schema": _HEADERS["x-request-id"]["schema"]}},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "`pl_…`"}},
        },
    }


def _list_operations(routes: Sequence[BaseRoute]) -> Iterator[tuple[str, str, Operation]]:
    for route in routes:
        operation = getattr(route.endpoint, "operation", None) if isinstance(route, APIRoute) else None
        if isinstance(route, APIRoute) and operation is not None:
            yield next(iter(route.methods)), route.path, operation


class _Schemas:
    """JSON Schemas of all types that go in and out. Of what only goes out every field comes: none has a default."""

    def __init__(self, operations: Iterable[Operation]) -> None:
        operations = list(operations)
        taken = [each for operation in operations for each in (operation.body, operation.query) if each is not None]
        sent = [each for operation in operations for answer in operation.answers.values() for each in _flatten(answer)]
        types = list(dict.fromkeys([*taken, *sent, ErrorBody, bodies.Event]))
        template = "#/components/schemas/{name}"
        made, components = describe_types(types, template)
        may_be_left_out = describe_types(taken, template)[1].keys()
        for name in components.keys() - may_be_left_out:
            _require_all(components[name])
        self.components = dict(sorted(components.items()))
        self._of = dict(zip(types, made, strict=True))

    def find(self, type_: Any) -> Schema:
        """The schema of a type, or of one of several."""
        found = [self._of[each] for each in _flatten(type_)]
        return found[0] if len(found) == 1 else {"anyOf": found}

    def list_parameters(self, operation: Operation, path: str) -> list[Schema]:
        """The parts of a path, what its query takes, and headers."""
        in_path = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)}", path)
        ]
        query = self.components[operation.query.__name__] if operation.query is not None else {"properties": {}}
        in_query = [
            {"name": name, "in": "query", "required": name in query["required"], "schema": schema}
            for name, schema in query["properties"].items()
        ]
        headers = [{"$ref": f"#/components/parameters/{header}"} for header in (*operation.headers, "x-request-id")]
        return [*in_path, *in_query, *headers]


def _flatten(type_: Any) -> tuple[Any, ...]:
    return type_ if isinstance(type_, tuple) else (type_,)


def _require_all(schema: Schema) -> None:
    for name, field in schema.get("properties", {}).items():
        if "default" in field:
            del field["default"]
            schema["required"].append(name)


def _describe(method: str, path: str, operation: Operation, schemas: _Schemas) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{method} {path}".lower()).strip("_"),
        "parameters": schemas.list_parameters(operation, path),
        "responses": {str(status): _describe_answer(operation, status, schemas) for status in operation.answers}
        | {
            str(status): {"$ref": f"#/components/responses/Refused{status}"}
            for status in sorted(operation.refusals - operation.answers.keys())
        },
        "security": [{"key": []}] if operation.needs_key else [],
    }
    if operation.body is not None:
        is_required = bool(schemas.components[operation.body.__name__]["required"])
        content = {"application/json": {"schema": schemas.find(operation.body)}}
        described["requestBody"] = {"required": is_required, "content": content}
    return described


def _describe_answer(operation: Operation, status: int, schemas: _Schemas) -> dict[str, Any]:
    schema = {"schema": schemas.find(operation.answers[status])}
    content: dict[str, Any] = {"text/plain" if operation.is_text else "application/json": schema}
    if operation.may_stream:
        content["text/event-stream"] = {"schema": schemas.find(bodies.Event)}
    headers = _ANSWER_HEADERS.get(status, {}) | (_RATE_LIMITS if 429 in operation.refusals else {})
    return {"description": f"{operation.summary}.", "headers": _with_request_id(headers), "content": content}


def _describe_refusal(status: int, schemas: _Schemas) -> dict[str, Any]:
    return {
        "description": _REFUSALS[status],
        "headers": _with_request_id(_ANSWER_HEADERS.get(status, {})),
        "content": {"application/json": {"schema": schemas.find(ErrorBody)}},
    }


def _with_request_id(headers: dict[str, Schema]) -> dict[str, Schema]:
    return {"x-request-id": {"$ref": "#/components/headers/x-request-id"}} | headers

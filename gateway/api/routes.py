"""Routes that take and return Structs, and what the OpenAPI document says of each.

An operator's route knows who asks before anything of the body is read, reads no more of it than a limit, and refuses
with 400 what it cannot read or the database could not hold. 500 is not an answer: it is a bug.
"""

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from gateway.access.auth import authenticate_operator
from gateway.api.request_body import decode_body, invalid, read_body, refuse_nul
from gateway.serving.context import Context

_MAX_BODY_BYTES = 65_536

APPS, OPERATORS, MACHINES = "apps", "operators", "machines"
OF_ANY = frozenset({400, 408, 431})  # the server's own: of what is not HTTP, dawdles, or has too large a head
OF_KEYS = frozenset({401, 403})

Body = type[msgspec.Struct]
Answers = Mapping[int, Any]  # a type, or a tuple of some, by status
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One method of one path. `answers`: what JSON comes by status; `refusals`: statuses that come with an error."""

    tag: str
    summary: str
    answers: Answers
    refusals: frozenset[int] = frozenset()
    body: Body | None = None
    query: Body | None = None
    headers: tuple[str, ...] = ()
    needs_key: bool = True
    may_stream: bool = False
    is_text: bool = False


def add_route(router: APIRouter, method: str, path: str, operation: Operation) -> Callable[[F], F]:
    """Adds a handler to a router, with its operation for the document."""

    def add(handle: F) -> F:
        handle.operation = operation  # type: ignore[attr-defined]
        router.add_api_route(path, handle, methods=[method])
        return handle

    return add


def render(answer: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A Struct as a response."""
    return Response(msgspec.json.encode(answer), status, headers, "application/json")


class OperatorRoutes:
    """Routes under /operator/v1, each for keys (or sessions) of one scope.

    A handler takes the identity, then by name the parts of its path, `body` and `query` if it has them. It returns its
    answer, with the first of `answers` as its status, or (status, answer).
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.router = APIRouter(prefix="/operator/v1")

    def add(
        self,
        method: str,
        path: str,
        summary: str,
        answers: Answers,
        *refusals: int,
        body: Body | None = None,
        query: Body | None = None,
        scope: str = "operator",
    ) -> Callable[[Callable[..., Coroutine[Any, Any, Any]]], None]:
        """Adds a handler. `refusals`: besides those of every operator's route."""
        operation = Operation(
            tag=OPERATORS, summary=summary, answers=answers, body=body, query=query,
            refusals=OF_ANY | OF_KEYS | {413, 503, *refusals},
        )  # fmt: skip
        usual = next(iter(answers))

        def add(handle: Callable[..., Coroutine[Any, Any, Any]]) -> None:
            async def answer(request: Request) -> Response:
                identity = authenticate_operator(request, self._context.keys, self._context.secrets, scope)
                given: dict[str, Any] = dict(request.path_params)
                raw = await read_body(request, _MAX_BODY_BYTES)
                if body is not None:
                    given["body"] = decode_body(raw or b"{}", msgspec.json.Decoder(body).decode, "request")
                if query is not None:
                    given["query"] = _read_query(request, query)
                for name, value in given.items():
                    refuse_nul(msgspec.to_builtins(value), name if isinstance(value, str) else None)
                result = await handle(identity, **given)
                status, content = result if isinstance(result, tuple) else (usual, result)
                return render(content, status)

            add_route(self.router, method, path, operation)(answer)

        return add


def _read_query(request: Request, type_: Body) -> msgspec.Struct:
    try:
        return msgspec.convert(dict(request.query_params), type_, strict=False)
    except msgspec.ValidationError as error:
        raise invalid(error, "request") from None

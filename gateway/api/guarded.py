"""Routes of operators: who asks is known before anything of the body is read, and no more of it is read than a limit."""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from gateway.access.auth import require_scope
from gateway.api.request_body import read_body

_MAX_BODY_BYTES = 65_536


class OperatorRoute(APIRoute):
    """A route that needs the scope operator. Refuses with 401, 403 or 413 before FastAPI looks at the body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler behind the guard."""
        handle = super().get_route_handler()

        async def guard(request: Request) -> Response:
            require_scope(request, "operator")
            body = await read_body(request, _MAX_BODY_BYTES)

            async def replay() -> Message:
                return {"type": "http.request", "body": body, "more_body": False}

            return await handle(Request(request.scope, replay))

        return guard

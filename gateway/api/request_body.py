"""Reads request bodies within a limit."""

from starlette.requests import Request
from starlette.types import Receive

from gateway.errors import ApiError


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises ApiError 413, ClientGone."""
    return await receive_body(request.receive, max_bytes)


async def receive_body(receive: Receive, max_bytes: int) -> bytes:
    """The whole body from an ASGI channel. Raises ApiError 413, ClientGone."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise ApiError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large")
        pieces.append(piece)
        if not message.get("more_body", False):
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)

"""Reads request bodies within a limit, as Structs."""

import re
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from starlette.requests import Request

from gateway.errors import ApiError, bad_request

_MISSING = re.compile(r"missing required field `(.+)`")
_UNKNOWN = re.compile(r"contains unknown field `(.+)`")
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection before its request was complete."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """The whole body. Raises ApiError 413, ClientGone."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        size += len(piece)
        if size > max_bytes:
            raise ApiError(413, f"The body is larger than {max_bytes} bytes.", code="request_too_large")
        pieces.append(piece)
        if not message.get("more_body", False):
            return b"".join(pieces)


def decode_body(body: bytes, decode: Callable[[bytes], T], what: str) -> T:
    """What a JSON body says. Raises ApiError 400 that names the field at fault, also one that is missing."""
    try:
        return decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(error, what) from None


def invalid(error: Exception, what: str) -> ApiError:
    """400 for what msgspec could not read."""
    message, _, path = str(error).partition(" - at `")
    param = path.rstrip("`").removeprefix("$").lstrip(".")
    if missing := _MISSING.search(message):
        param = f"{param}.{missing[1]}" if param else missing[1]
    elif (unknown := _UNKNOWN.search(message)) and not param:
        param = unknown[1]
    return bad_request(f"Invalid {what}: {message}.", param=param or None)


def refuse_nul(value: Any, param: str | None = None) -> None:
    """Raises ApiError 400 if some text has a NUL character, which PostgreSQL cannot hold."""
    if isinstance(value, str):
        if "\0" in value:
            raise bad_request("Text must not have NUL characters.", param=param)
    elif isinstance(value, dict):
        for name, each in value.items():
            refuse_nul(name, param)
            refuse_nul(each, str(name) if param is None else f"{param}.{name}")
    elif isinstance(value, list):
        for each in value:
            refuse_nul(each, param)

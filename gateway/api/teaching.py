"""What one person may see and do in the playground of their own machine: what was learnt of them, trials, before and after.

For programs on this machine alone, addressed by its own name, and only where `gateway.playground_operates` is set: they
need no key. What is shown is in learning_view.py.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from gateway.access.clients import find_request_client, is_loopback
from gateway.access.limits.allowance import KeyLimits
from gateway.api.conflicts import answer_conflicts
from gateway.api.learning_view import Learning, build_learning, find_first
from gateway.api.playground import (
    PLAYGROUND,
    build_chat_body,
    is_local_call,
    refuse_other_sites,
    refuse_other_types,
)
from gateway.api.request_body import decode_body, read_body
from gateway.api.routes import render
from gateway.errors import ApiError, SwapError, forbidden, not_found, unavailable
from gateway.serving.dispatch import answer_chat
from gateway.tables.checkpoints import CheckpointRow, list_checkpoints
from gateway.tables.serving import get_stable

if TYPE_CHECKING:
    from gateway.http.call import Call, Handler
    from gateway.serving.context import Context
    from gateway.serving.routing import Header

_logger = logging.getLogger(__name__)

BESIDE_PATH = b"/playground/beside"
_ACTOR = "playground"
_MAX_BYTES = 4096
_NO_STORE = {"cache-control": "no-store"}
_OPERATOR = replace(PLAYGROUND, scopes=frozenset({"app", "operator"}), pairs=False)


class Seen(msgspec.Struct, frozen=True):
    """The trial as it was shown."""

    rollout: str
    generation: int
    decision_digest: str


class Ended(msgspec.Struct, frozen=True):
    """The trial that shall end."""

    rollout: str


class Beside(msgspec.Struct, frozen=True):
    """A conversation for the first checkpoint, or for the one that serves now."""

    messages: list[dict[str, Any]]
    checkpoint: Literal["first", "stable"]


def build_teaching_router(context: Context) -> APIRouter:
    """Return the routes under /playground that are not an engine's."""
    router = APIRouter(include_in_schema=False)

    def admit(request: Request) -> None:
        header = _header_of(request)
        refuse_other_sites(header)
        client = find_request_client(request, context.settings.gateway.trusted_proxies)
        refuse_strangers(context, header, is_local=client.is_local)

    async def read_seen(request: Request, kind: type[msgspec.Struct]) -> Any:
        admit(request)
        if not request.headers.get("content-type", "").startswith("application/json"):
            raise ApiError(415, "Send application/json.")
        return decode_body(await read_body(request, _MAX_BYTES), msgspec.json.Decoder(kind).decode, "request")

    @router.get("/playground/learning")
    async def show_learning(request: Request) -> Response:
        if not context.settings.gateway.playground_operates:
            return render(Learning(operates=False), headers=_NO_STORE)
        admit(request)
        return render(await build_learning(context), headers=_NO_STORE)

    @router.post("/playground/trial:approve")
    async def approve(request: Request) -> Response:
        seen: Seen = await read_seen(request, Seen)
        actions = context.controller.actions
        await answer_conflicts(actions.approve(seen.rollout, seen.generation, seen.decision_digest, _ACTOR))
        return render(await build_learning(context), headers=_NO_STORE)

    @router.post("/playground/trial:abort")
    async def abort(request: Request) -> Response:
        ended: Ended = await read_seen(request, Ended)
        await answer_conflicts(context.controller.actions.abort(ended.rollout, _ACTOR))
        return render(await build_learning(context), headers=_NO_STORE)

    return router


def build_beside_handler(context: Context) -> Handler:
    """The handler of BESIDE_PATH: one answer, of a checkpoint by name."""
    section = context.settings.gateway
    identity = replace(_OPERATOR, limits=KeyLimits(requests_per_minute=section.playground_requests_per_minute))
    decoder = msgspec.json.Decoder(Beside)

    async def ask(call: Call) -> None:
        refuse_other_sites(call.header)
        refuse_strangers(context, call.header, is_local=is_local_call(call, section))
        refuse_other_types(call)
        asked = decode_body(call.body, decoder.decode, "question")
        row = await _find_checkpoint(context, asked.checkpoint)
        context.deployment.hold(row.id)  # or the controller would let it go before it is asked
        try:
            await context.swap.load(row)
            await answer_chat(context, identity, call, {}, build_chat_body(asked.messages, row.id, section))
        except SwapError as error:
            _logger.warning("%s cannot be asked: %s", row.id, error)
            raise unavailable("The engine cannot load that checkpoint now.") from error
        finally:
            context.deployment.release(row.id)

    return ask


def refuse_strangers(context: Context, header: Header, *, is_local: bool) -> None:
    """Only where a setting allows it, for this machine, under its own name: other names may lead here too. Raises ApiError."""
    host = (header(b"host") or "").rpartition("@")[2]
    name = host.partition("]")[0].removeprefix("[") if host.startswith("[") else host.partition(":")[0]
    if not context.settings.gateway.playground_operates or not is_local or not is_loopback(name):
        raise forbidden("This is for this machine only, where `gateway.playground_operates` allows it.")


async def _find_checkpoint(context: Context, which: str) -> CheckpointRow:
    """Raises ApiError 404 where there is none, or its files are gone."""
    policy = context.settings.policy
    row = await context.writer.aread(
        lambda conn: get_stable(conn, policy) if which == "stable" else find_first(list_checkpoints(conn))
    )
    if row is None or row.status == "deleted":
        raise not_found("There is no such checkpoint any more.")
    return row


def _header_of(request: Request) -> Header:
    return lambda name: request.headers.get(name.decode())

"""Takes what a user said of a comparison. The token alone authorises, so browsers may call this from any site.

Acknowledged only after the transaction that holds the choice has committed; if it cannot, 503 and Retry-After.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import TYPE_CHECKING, Literal
from urllib.parse import unquote

import msgspec
from fastapi import APIRouter
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from feedback.choices import NewChoice, StoredChoice, record_choices
from feedback.duels import name_outcome
from feedback.errors import ConflictingChoice, DatabaseError, ExpiredComparison, UnknownComparison
from feedback.faults import reach
from gateway.access.keys import PLAYGROUND_APP
from gateway.access.tokens import ComparisonToken, read_token
from gateway.api.request_body import decode_body
from gateway.errors import ApiError, bad_request, error_body, not_found, unauthorized, unavailable
from gateway.http.eager import enter_task
from gateway.serving.context import Context

if TYPE_CHECKING:
    from gateway.http.call import Call, Handler

logger = logging.getLogger("gateway.choices")

_MAX_BODY_BYTES = 16_384
_COMMIT_TIMEOUT_S = 5.0
CHOICE_PATH = "/v1/comparisons/{comparison_id}/choice"
_PATH = re.compile(rb"/v1/comparisons/([^/?]+)/choice")
_METHODS = "POST, OPTIONS"
CORS = {"access-control-allow-origin": "*"}
_CORS_LINE = b"access-control-allow-origin: *\r\n"
_PREFLIGHT = CORS | {
    "access-control-allow-methods": _METHODS,
    "access-control-allow-headers": "content-type",
    "access-control-max-age": "86400",
}


class ChoiceRequest(msgspec.Struct, frozen=True):
    """The body of a choice."""

    preferred: Literal["first", "second", "tie", "both_bad", "skip"]
    token: str
    strength: float | None = None
    harmful: bool = False


class ChoiceAnswer(msgspec.Struct, frozen=True):
    """What was stored."""

    id: str
    preferred: str
    object: Literal["comparison.choice"] = "comparison.choice"


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(ChoiceRequest)


def build_choices_router() -> APIRouter:
    """The preflight of choices from other sites; our server takes the choices themselves by `find_choice_handler`."""
    router = APIRouter()

    @router.api_route(CHOICE_PATH, methods=["GET", "HEAD", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    async def refuse_method(comparison_id: str) -> Response:
        body = error_body(405, "This address takes POST.")
        return Response(body, 405, {"allow": _METHODS, **CORS}, "application/json")

    @router.options(CHOICE_PATH, include_in_schema=False)
    async def allow_any_site(comparison_id: str) -> Response:
        return Response(status_code=204, headers=_PREFLIGHT)

    return router


def find_choice_handler(context: Context, path: bytes) -> Handler | None:
    """The handler of a POST if the path is a choice's."""
    found = _PATH.fullmatch(path)
    if found is None:
        return None
    comparison_id = unquote(found[1].decode("latin-1"))

    async def choose(call: Call) -> None:
        try:
            if len(call.body) > _MAX_BODY_BYTES:
                raise ApiError(413, f"The body is larger than {_MAX_BODY_BYTES} bytes.", code="request_too_large")
            answer = await take_choice(context, comparison_id, call)
        except ApiError as error:
            error.headers.update(CORS)
            raise
        call.send(200, answer, extra=_CORS_LINE)

    return choose


async def take_choice(context: Context, comparison_id: str, call: Call) -> bytes:
    """Store the choice that a call makes; the answer's body. Raises ApiError 400, 401, 404, 409, 410 or 503."""
    request = parse_choice(call.body)
    claims = read_token(request.token, context.secrets)
    if claims is None or claims.comparison != comparison_id:  # before anything reaches the database
        raise unauthorized("The token is not for this comparison.")
    await enter_task()
    try:
        async with asyncio.timeout(_COMMIT_TIMEOUT_S):
            new = NewChoice(
                comparison_id=comparison_id,
                preferred=request.preferred,
                strength=request.strength,
                harmful=request.harmful,
                channel="browser" if b"origin" in call.headers else "api",
                at=time.time(),
                is_published=claims.app != PLAYGROUND_APP or context.settings.gateway.playground_trains,
            )
            stored = await context.writer.arun_grouped(_record, new)
    except UnknownComparison:
        raise not_found("There is no such comparison.", code="unknown_comparison") from None
    except ExpiredComparison:
        raise ApiError(410, "The comparison has expired.", code="expired_comparison") from None
    except ConflictingChoice:
        raise ApiError(409, "Another choice was made of this comparison.", code="conflicting_choice") from None
    except (DatabaseError, SQLAlchemyError, OSError, TimeoutError) as error:
        logger.error("a choice could not be stored: %s", error or "time-out", extra=call.log_fields)
        raise unavailable("The choice could not be stored; send it again.") from error
    reach("choice.committed")
    if stored.status == "created":
        context.relay.notify()
        _note_created(context, claims, request, stored.canary_first)
    return _encoder.encode(ChoiceAnswer(id=comparison_id, preferred=request.preferred))


def _record(connection: Connection, new: list[NewChoice]) -> list[StoredChoice | Exception]:
    return record_choices(connection, new)


def parse_choice(body: bytes) -> ChoiceRequest:
    """Read the body. Raises ApiError 400."""
    request = decode_body(body, _decoder.decode, "choice")
    if request.strength is not None and not 0 <= request.strength <= 1:
        raise bad_request("`strength` must lie between 0 and 1.", param="strength")
    return request


def _note_created(context: Context, claims: ComparisonToken, request: ChoiceRequest, canary_first: bool | None) -> None:
    context.deployment.counters.choices += 1
    context.metrics.choices.labels(request.preferred).inc()
    if canary_first is not None and request.preferred != "skip":
        outcome = name_outcome(request.preferred, canary_first=canary_first)
        context.metrics.count_duel(outcome, "first" if canary_first else "second")
    if request.preferred == "skip" and claims.chooser:
        context.asks.note_skipped(claims.chooser, time.time() + context.settings.gateway.skip_cooldown_s)

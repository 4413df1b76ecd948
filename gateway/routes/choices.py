"""Takes what a user said of a comparison. The token alone authorises, so browsers may call this from any site.

Acknowledged only after the transaction that holds the choice has committed; if it cannot, 503 and Retry-After.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from typing import Literal

import msgspec
from fastapi import APIRouter, Request
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from feedback.choices import StoredChoice, load_comparison, record_choice
from feedback.errors import ConflictingChoice, DatabaseError, ExpiredComparison, UnknownComparison
from feedback.faults import reach
from gateway.context import Context
from gateway.errors import ApiError, bad_request, not_found, unauthorized, unavailable
from gateway.requests import read_body
from gateway.tokens import ComparisonToken, read_token

logger = logging.getLogger("gateway.choices")

_MAX_BODY_BYTES = 16_384
_COMMIT_TIMEOUT_S = 10.0
CORS = {"access-control-allow-origin": "*"}
_PREFLIGHT = CORS | {
    "access-control-allow-methods": "POST, OPTIONS",
    "access-control-allow-headers": "content-type",
    "access-control-max-age": "86400",
}


class ChoiceRequest(msgspec.Struct, frozen=True):
    """The body of a choice."""

    preferred: Literal["first", "second", "tie", "both_bad", "skip"]
    token: str
    strength: float | None = None
    harmful: bool = False


def build_choices_router(context: Context) -> APIRouter:
    """The one route, and its preflight."""
    router = APIRouter()

    @router.options("/v1/comparisons/{comparison_id}/choice", include_in_schema=False)
    async def allow_any_site(comparison_id: str) -> Response:
        return Response(status_code=204, headers=_PREFLIGHT)

    @router.post("/v1/comparisons/{comparison_id}/choice")
    async def choose(comparison_id: str, request: Request) -> Response:
        try:
            stored = await take_choice(
                context, comparison_id, request.headers, await read_body(request, _MAX_BODY_BYTES)
            )
        except ApiError as error:
            error.headers.update(CORS)
            raise
        body = {"id": comparison_id, "object": "comparison.choice", "preferred": stored.choice.preferred}
        return Response(msgspec.json.encode(body), media_type="application/json", headers=CORS)

    return router


async def take_choice(context: Context, comparison_id: str, headers: Mapping[str, str], body: bytes) -> StoredChoice:
    """Store a choice. Raises ApiError 400, 401, 404, 409, 410 or 503."""
    request = parse_choice(body)
    claims = read_token(request.token, context.secrets)
    now = time.time()
    channel = "browser" if "origin" in headers else "api"
    try:
        if claims is None or claims.comparison != comparison_id:
            await asyncio.to_thread(_demand_known, context, comparison_id)
            raise unauthorized("The token is not for this comparison.")
        stored = await asyncio.wait_for(
            context.writer.arun(
                lambda conn: record_choice(
                    conn, comparison_id, request.preferred, request.strength, request.harmful, channel, now
                )
            ),
            _COMMIT_TIMEOUT_S,
        )
    except UnknownComparison:
        raise not_found("There is no such comparison.", code="unknown_comparison") from None
    except ExpiredComparison:
        raise ApiError(410, "The comparison has expired.", code="expired_comparison") from None
    except ConflictingChoice:
        raise ApiError(409, "Another choice was made of this comparison.", code="conflicting_choice") from None
    except (DatabaseError, SQLAlchemyError, OSError, TimeoutError) as error:
        logger.error("a choice could not be stored: %s", error)
        raise unavailable("The choice could not be stored; send it again.") from error
    reach("choice.committed")
    if stored.status == "created":
        context.relay.notify()
        _note_created(context, claims, request)
    return stored


def parse_choice(body: bytes) -> ChoiceRequest:
    """Read the body. Raises ApiError 400."""
    try:
        request = msgspec.json.decode(body, type=ChoiceRequest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        message, _, path = str(error).partition(" - at `$")
        raise bad_request(f"Invalid choice: {message}.", param=path.strip("`").lstrip(".") or None) from None
    if request.strength is not None and not 0 <= request.strength <= 1:
        raise bad_request("`strength` must lie between 0 and 1.", param="strength")
    return request


def _demand_known(context: Context, comparison_id: str) -> None:
    with context.database.connect() as conn:
        load_comparison(conn, comparison_id)


def _note_created(context: Context, claims: ComparisonToken, request: ChoiceRequest) -> None:
    context.deployment.counters.choices += 1
    context.metrics.choices.labels(request.preferred).inc()
    if request.preferred == "skip" and claims.chooser:
        context.asks.note_skipped(claims.chooser, time.time() + context.settings.gateway.skip_cooldown_s)

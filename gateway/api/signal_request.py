"""A signal as an app sends it: its body and its headers, read and checked."""

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from feedback.events import Outcome
from gateway.api.request_body import decode_body
from gateway.errors import bad_request
from gateway.serving.body import check_depth

SCALE = 5  # unless the request says another
_MAX_SCALE = 1000
_MAX_KEY = 255
_MAX_NAME = 200
_MAX_COMMENT = 10_000
_SAID = ("thumb", "rating", "edited_text", "outcome", "comment")


class StrictOutcome(Outcome, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An outcome as an app sends it."""


class SignalRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a signal: one or several of `thumb` … `comment`.

    `rating` lies between 1 and `scale`; `index` is the choice's among several; `messages` and `answer` are for a
    completion that was not recorded.
    """

    thumb: Literal["up", "down"] | None = None
    rating: float | None = None
    scale: int | None = None
    edited_text: str | None = None
    outcome: StrictOutcome | None = None
    comment: str | None = None
    index: int = 0
    messages: list[dict[str, Any]] | None = None
    answer: str | None = None


_decoder = msgspec.json.Decoder(SignalRequest)


def parse_signal(body: bytes) -> SignalRequest:
    """Read the body. Raises ApiError 400."""
    request = decode_body(body, _decoder.decode, "signal")
    if all(getattr(request, name) is None for name in _SAID):
        raise bad_request(f"Say one of {', '.join(_SAID)}.")
    _check_rating(request)
    if request.edited_text == "":
        raise bad_request("`edited_text` is empty.", param="edited_text")
    if request.comment is not None and not 0 < len(request.comment) <= _MAX_COMMENT:
        raise bad_request(f"`comment` must have 1 to {_MAX_COMMENT} characters.", param="comment")
    if request.outcome is not None:
        if request.outcome.success is None and request.outcome.score is None:
            raise bad_request("`outcome` needs `success` or `score`.", param="outcome")
        if len(request.outcome.name or "") > _MAX_NAME:
            raise bad_request(f"`outcome.name` has more than {_MAX_NAME} characters.", param="outcome.name")
    if request.index < 0:
        raise bad_request("`index` must not be negative.", param="index")
    if (request.messages is None) != (request.answer is None) or request.messages == []:
        raise bad_request("`messages` and `answer` go together, and neither is empty.", param="messages")
    try:
        check_depth(request.messages)
    except ValueError as error:
        raise bad_request(f"`messages` is {error}.", param="messages") from None
    return request


def _check_rating(request: SignalRequest) -> None:
    if request.scale is not None:
        if request.rating is None:
            raise bad_request("`scale` says nothing without `rating`.", param="scale")
        if not 2 <= request.scale <= _MAX_SCALE:
            raise bad_request(f"`scale` must lie between 2 and {_MAX_SCALE}.", param="scale")
    scale = request.scale or SCALE
    if request.rating is not None and not 1 <= request.rating <= scale:
        raise bad_request(f"`rating` must lie between 1 and {scale}.", param="rating")


def read_idempotency_key(headers: Mapping[str, str]) -> str | None:
    """The key, without the quotes that the draft asks for and most clients leave out. Raises ApiError 400."""
    value = headers.get("idempotency-key")
    if value is None:
        return None
    key = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
    if not 0 < len(key) <= _MAX_KEY or not key.isascii() or not key.isprintable():
        raise bad_request(f"`Idempotency-Key` must have 1 to {_MAX_KEY} printable characters.", param="idempotency-key")
    return key

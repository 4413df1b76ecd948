"""What a request says that only records need: read once a pair, or when a signal comes, never on the way of single answers.

The engine judges these fields; what cannot be read, or not be stored, is None here and the pair goes on.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from gateway.serving.body import check_depth

_ABSENT, _UNSAID = msgspec.Raw(b"null"), msgspec.Raw()
_TAGS = ("domain", "language", "task")


class _Fields(msgspec.Struct):
    tools: msgspec.Raw = _ABSENT
    chat_template_kwargs: msgspec.Raw = _ABSENT
    top_p: msgspec.Raw = _ABSENT
    metadata: msgspec.Raw = _ABSENT
    return_token_ids: msgspec.Raw = _UNSAID


class PairRequest(msgspec.Struct, frozen=True):
    """The tools, template arguments, top_p and tags of a request.

    tags: what the app says of it, in its metadata. chooses_token_ids: whether it sets `return_token_ids` itself.
    """

    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    top_p: float | None = None
    tags: dict[str, str] = {}
    chooses_token_ids: bool = False


_fields = msgspec.json.Decoder(_Fields)


def read_pair_request(body: bytes) -> PairRequest:
    """Reads a request's body, which is a JSON object."""
    try:
        fields = _fields.decode(body)
    except (ValueError, RecursionError):
        return PairRequest()
    return PairRequest(
        tools=_read(fields.tools, list[dict[str, Any]] | None),
        chat_template_kwargs=_read(fields.chat_template_kwargs, dict[str, Any] | None),
        top_p=_read(fields.top_p, float | None),
        tags=_read_tags(fields.metadata),
        chooses_token_ids=bytes(fields.return_token_ids) != b"",
    )


def _read_tags(metadata: msgspec.Raw) -> dict[str, str]:
    """As far as they are what they should be: engines ignore the field."""
    given = _read(metadata, dict[str, Any] | None) or {}
    return {name: value for name in _TAGS if isinstance(value := given.get(name), str)}


def _read(raw: msgspec.Raw, kind: Any) -> Any:
    try:
        value = msgspec.json.decode(raw, type=kind)
        check_depth(value)
    except (ValueError, RecursionError):
        return None
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""JSON Schemas of the events as docs/schemas publishes them. They change only by additions: a test holds that."""

from __future__ import annotations

import msgspec

from feedback.events import json_schemas

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def render_schemas() -> dict[str, str]:
    """The text of each event type's schema file, by type."""
    return {name: _render({"$schema": _DIALECT, **schema}) for name, schema in json_schemas().items()}


def _render(schema: dict[str, object]) -> str:
    return msgspec.json.format(msgspec.json.encode(schema), indent=1).decode() + "\n"

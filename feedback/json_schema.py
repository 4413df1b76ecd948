"""JSON Schemas of msgspec types, the same text whatever version of msgspec and Python wrote them.

Some versions keep the indentation of a docstring's later lines, some do not.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import msgspec


def describe_types(types: Iterable[Any], ref_template: str) -> tuple[list[Any], dict[str, Any]]:
    """As msgspec.json.schema_components, with clean descriptions: a schema for each type, and the components by name."""
    schemas, components = msgspec.json.schema_components(types, ref_template=ref_template)
    clean_descriptions(components)
    return list(schemas), components


def clean_descriptions(schema: Any) -> None:
    """Takes the indentation out of every description in a schema, in place. A property of that name is none."""
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name == "description" and isinstance(value, str):
                schema[name] = inspect.cleandoc(value)
            else:
                clean_descriptions(value)
    elif isinstance(schema, list):
        for value in schema:
            clean_descriptions(value)

"""JSON Schemas of the events, and the rule by which they may change: additive only within a version.

Pure. A later schema keeps every field with its type, its default and its being required or not; it may add optional
fields and values of an enumeration. Text (titles, descriptions) may change freely.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from feedback.events import json_schemas

Schema = dict[str, Any]

_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def render_schemas() -> dict[str, str]:
    """The text of each event type's schema file, by type."""
    return {name: _render({"$schema": _DIALECT, **schema}) for name, schema in json_schemas().items()}


def find_violations(released: Schema, current: Schema) -> list[str]:
    """What in `current` breaks the promise of `released`, one sentence each; empty if it only adds."""
    return list(_compare(_Reader(released), released, _Reader(current), current, "$"))


def _render(schema: Schema) -> str:
    return msgspec.json.format(msgspec.json.encode(schema), indent=1).decode() + "\n"


class _Reader:
    """Follows the references of one schema document."""

    def __init__(self, document: Schema) -> None:
        self._definitions: Schema = document.get("$defs", {})

    def resolve(self, node: Schema) -> Schema:
        """The node itself, or what it refers to."""
        while "$ref" in node:
            node = {**self._definitions[node["$ref"].rpartition("/")[2]], **_without_ref(node)}
        return node

    def variants(self, node: Schema) -> dict[str, Schema]:
        """What a value may be, by kind: a JSON type, `enum`, or `any`."""
        node = self.resolve(node)
        if "anyOf" in node:
            return {kind: found for part in node["anyOf"] for kind, found in self.variants(part).items()}
        if "enum" in node or "const" in node:
            return {"enum": node}
        kinds = node.get("type", "any")
        return {kind: node for kind in ([kinds] if isinstance(kinds, str) else kinds)}


def _without_ref(node: Schema) -> Schema:
    return {name: value for name, value in node.items() if name != "$ref"}


def _compare(old: _Reader, before: Schema, new: _Reader, after: Schema, place: str) -> Iterator[str]:
    were, are = old.variants(before), new.variants(after)
    if were.keys() != are.keys():
        yield f"{place}: type {_name(were)} became {_name(are)}"
    for kind in sorted(were.keys() & are.keys()):
        if kind == "enum":
            yield from _compare_values(were[kind], are[kind], place)
        elif kind == "object":
            yield from _compare_objects(old, were[kind], new, are[kind], place)
        elif kind == "array":
            yield from _compare(old, were[kind].get("items", {}), new, are[kind].get("items", {}), f"{place}[]")


def _compare_values(before: Schema, after: Schema, place: str) -> Iterator[str]:
    now = _values(after)
    for value in _values(before):
        if value not in now:
            yield f"{place}: the value {value!r} was removed"


def _compare_objects(old: _Reader, before: Schema, new: _Reader, after: Schema, place: str) -> Iterator[str]:
    were, are = before.get("properties", {}), after.get("properties", {})
    needed, needs = set(before.get("required", ())), set(after.get("required", ()))
    for name in sorted(were.keys() | are.keys()):
        field = f"{place}.{name}"
        if name not in are:
            yield f"{field}: the field was removed"
        elif name not in were:
            if name in needs:
                yield f"{field}: a new field is required"
        else:
            if name in needs - needed:
                yield f"{field}: the field became required"
            if name in needed - needs:
                yield f"{field}: the field is no longer required"
            if were[name].get("default") != are[name].get("default"):
                yield f"{field}: the default changed"
            yield from _compare(old, were[name], new, are[name], field)
    yield from _compare_extra(old, before, new, after, place)


def _compare_extra(old: _Reader, before: Schema, new: _Reader, after: Schema, place: str) -> Iterator[str]:
    """Fields without a name of their own: additionalProperties is a schema, false, or absent for anything."""
    were, are = before.get("additionalProperties", True), after.get("additionalProperties", True)
    if isinstance(were, dict) and isinstance(are, dict):
        yield from _compare(old, were, new, are, f"{place}.*")
    elif were != are:
        yield f"{place}.*: type changed"


def _values(node: Schema) -> list[Any]:
    return list(node.get("enum", [node.get("const")]))


def _name(variants: dict[str, Schema]) -> str:
    return " or ".join(sorted(variants))

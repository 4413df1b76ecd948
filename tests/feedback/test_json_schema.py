"""Schemas read the same whatever version of msgspec wrote them."""

from typing import Any

import msgspec

from feedback.json_schema import clean_descriptions, describe_types


def test_descriptions_lose_the_indentation_of_a_docstring_at_any_depth() -> None:
    schema: dict[str, Any] = {
        "A": {"description": "One.\n\n    Two.\n      Three.", "anyOf": [{"description": "x\n    y"}]}
    }
    clean_descriptions(schema)
    assert schema == {"A": {"description": "One.\n\nTwo.\n  Three.", "anyOf": [{"description": "x\ny"}]}}


def test_a_property_called_description_is_left_alone() -> None:
    schema: dict[str, Any] = {"properties": {"description": {"type": "string", "description": "a\n    b"}}}
    clean_descriptions(schema)
    assert schema == {"properties": {"description": {"type": "string", "description": "a\nb"}}}


def test_types_are_described_without_indentation() -> None:
    class Row(msgspec.Struct):
        """A row.

        of a table
        """

        id: int

    _, components = describe_types([Row], "#/{name}")
    assert components["Row"]["description"] == "A row.\n\nof a table"

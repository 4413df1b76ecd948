"""Reads rows into dataclasses that have a table's columns as their fields.

Functions of this package take an open connection and never commit.
"""

from dataclasses import fields
from typing import Any

from sqlalchemy import Select, Table, select


def select_rows(row_type: type, table: Table) -> Select[Any]:
    """The columns in the order of the type's fields, so that `row_type(*row)` is what was read."""
    return select(*(table.c[field.name] for field in fields(row_type)))

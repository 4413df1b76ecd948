"""The databases' tables by store: who declares them, how they are made, and inserts that leave existing rows alone.

Each module declares its own tables on `metadata`; migrations (feedback/schema.py) bring a database to them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from feedback.database.connection import write_transaction

Store = Literal["gateway", "completions", "trainer"]
"""A set of tables that is migrated as one; a database may hold several."""

metadata = sa.MetaData()
"""The gateway's tables. Each module declares its own on it; the log and the trainer have theirs."""

_MAX_PARAMETERS = 500  # of one statement: databases bound them
T = TypeVar("T")
_SCHEMA_LOCK = 0x70726566  # any number that nobody else takes


def locate_store(store: Store, state_dir: Path, url: str) -> str:
    """The SQLAlchemy URL of a store's database. url: what the settings say; empty means a file in `state_dir`.

    Recorded answers share the gateway's PostgreSQL, and lie in a file of their own beside SQLite's gateway.db.
    """
    if url and not (store == "completions" and url.startswith("sqlite")):
        return url
    return f"sqlite:///{state_dir / store}.db"


def create_tables(engine: sa.Engine, tables: sa.MetaData) -> None:
    """Create what is missing. Safe when several processes start at once."""
    with write_transaction(engine) as connection:
        lock_schema(connection)
        tables.create_all(connection)


def lock_schema(connection: sa.Connection) -> None:
    """Wait until no other process changes the schema; until this transaction ends none does, however long it takes."""
    if connection.dialect.name == "postgresql":  # SQLite's write lock is held already
        connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SCHEMA_LOCK)))


def insert_or_ignore(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert one row unless a unique key holds it already; return whether it was inserted."""
    statement = _insert_ignoring(connection, table).values(**values)
    result = connection.execute(statement, execution_options={"preserve_rowcount": True})  # else unknown on PostgreSQL
    return result.rowcount == 1


def insert_missing(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert the rows that no unique key holds already."""
    if rows:
        connection.execute(_insert_ignoring(connection, table), rows)


def split_parameters(values: Sequence[T]) -> Iterator[list[T]]:
    """The values in lists that one statement takes, in their order."""
    for start in range(0, len(values), _MAX_PARAMETERS):
        yield list(values[start : start + _MAX_PARAMETERS])


def _insert_ignoring(connection: sa.Connection, table: sa.Table) -> sa.Insert:
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()

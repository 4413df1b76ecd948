"""Databases: opened by URL, their tables by store, and one writing thread with group commit."""

from __future__ import annotations

from feedback.database.connection import open_database, sqlite_path, wait_for_database, write_transaction
from feedback.database.tables import (
    Store,
    create_tables,
    insert_missing,
    insert_or_ignore,
    locate_store,
    lock_schema,
    metadata,
    split_parameters,
)
from feedback.database.writer import Writer

__all__ = [
    "Store",
    "Writer",
    "create_tables",
    "insert_missing",
    "insert_or_ignore",
    "locate_store",
    "lock_schema",
    "metadata",
    "open_database",
    "split_parameters",
    "sqlite_path",
    "wait_for_database",
    "write_transaction",
]

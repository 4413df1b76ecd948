"""Empty databases of both kinds for contract suites: SQLite in a file, and a real PostgreSQL."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from feedback.database import open_database
from prefloop.servers.postgres import Postgres

KINDS = ("sqlite", "postgresql")
_numbers = itertools.count()


def make_url(kind: str, folder: Path, server: Postgres | None) -> str:
    """The URL of a new, empty database."""
    if kind == "sqlite":
        return f"sqlite:{folder / f'test-{next(_numbers)}.db'}"
    assert server is not None
    return server.create_database(f"test_{next(_numbers)}")


def opened(url: str) -> Iterator[sa.Engine]:
    """The engine, disposed of at the end: a fixture's body."""
    engine = open_database(url)
    yield engine
    engine.dispose()


def empty_tables(engine: sa.Engine, names: list[str]) -> None:
    """Delete all rows of PostgreSQL's tables, and let their ids begin again."""
    with engine.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {', '.join(names)} RESTART IDENTITY CASCADE")

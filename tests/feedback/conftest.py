"""Databases for the contract suites: every test that takes `database` or `trainer_database` runs on both kinds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.database import Store, open_database
from feedback.schema import migrate, version_table
from prefloop.servers.postgres import Postgres
from tests.databases import KINDS, empty_tables, make_url
from tests.postgres import run_server


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with run_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> dict[Store, str]:
    """PostgreSQL databases with the tables in them, by what they are for."""
    urls: dict[Store, str] = {}
    for store in ("gateway", "trainer"):
        urls[store] = make_url("postgresql", tmp_path_factory.getbasetemp(), postgres)
        engine = open_database(urls[store])
        migrate(engine, store)
        engine.dispose()
    return urls


@pytest.fixture(params=KINDS)
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database without tables."""
    server = request.getfixturevalue("postgres") if database_kind == "postgresql" else None
    return make_url(database_kind, tmp_path / "deep", server)


@pytest.fixture
def database(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """The gateway's database, empty."""
    yield from open_empty("gateway", database_kind, request, tmp_path)


@pytest.fixture
def trainer_database(database_kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    """The trainer's database, empty."""
    yield from open_empty("trainer", database_kind, request, tmp_path)


def open_empty(store: Store, kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    if kind == "sqlite":
        engine = open_database(f"sqlite:{tmp_path / store}.db")
        migrate(engine, store)
    else:
        engine = open_database(request.getfixturevalue("migrated")[store])
        names = [name for name in sa.inspect(engine).get_table_names() if name != version_table(store)]
        empty_tables(engine, names)
    yield engine
    engine.dispose()

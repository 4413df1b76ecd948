"""A PostgreSQL for tests: the one that PREFLOOP_TEST_POSTGRES names, or one started here and thrown away.

Skips with its reason where there is none; in CI (environment CI=true) that is a failure.
"""

import contextlib
import os
from collections.abc import Iterator

import pytest

from prefloop.servers.postgres import MissingPostgres, Postgres, run_postgres


@contextlib.contextmanager
def run_database() -> Iterator[str]:
    """The SQLAlchemy URL of a database that tests may fill."""
    given = os.environ.get("PREFLOOP_TEST_POSTGRES")
    if given:
        yield given
        return
    with run_server() as server:
        yield server.create_database("tests")


@contextlib.contextmanager
def run_server() -> Iterator[Postgres]:
    """A server of the test's own, which it may kill."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        miss("psycopg is not installed")
    try:
        stack = contextlib.ExitStack()
        server = stack.enter_context(run_postgres(options=("fsync=off",)))
    except MissingPostgres as error:
        miss(str(error))
    with stack:
        yield server


def miss(reason: str) -> None:
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)

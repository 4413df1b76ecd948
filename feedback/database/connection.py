"""Opens a database by URL: SQLite from the bundled build, or PostgreSQL, in the way that a durable service needs it.

Promises: committed means on disk (WAL, synchronous=FULL), and nobody waits for ever for a server that does not answer.
Creates no tables.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError

from feedback.errors import DatabaseError, DatabaseUnavailable

logger = logging.getLogger("feedback.database")

MIN_SQLITE = (3, 51, 3)  # older ones have a rare WAL corruption with several connections
BUSY_TIMEOUT_MS = 5000
_POSTGRES: dict[str, Any] = {
    "connect_timeout": 5,  # seconds
    "keepalives": 1,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,  # ms: a host that is gone is noticed also while it owes an answer
    # A client that froze must not hold rows for ever, nor a statement the writer.
    "options": "-c statement_timeout=60s -c lock_timeout=10s -c idle_in_transaction_session_timeout=120s",
}
_POOL_TIMEOUT_S = 10
_MAX_PAUSE_S = 5.0


def open_database(url: str) -> sa.Engine:
    """Open `sqlite:PATH`, `sqlite:///PATH` or `postgresql+…://…`. Makes the parent directory; creates no tables.

    What the URL's query says of a PostgreSQL connection (`?connect_timeout=…`) wins over the values above.
    """
    if not url.startswith("sqlite"):
        given = sa.make_url(url)
        if given.drivername == "postgresql":  # SQLAlchemy's own choice of a driver has changed
            given = given.set(drivername="postgresql+psycopg")
        arguments = {name: value for name, value in _POSTGRES.items() if name not in given.query}
        return sa.create_engine(given, pool_pre_ping=True, pool_timeout=_POOL_TIMEOUT_S, connect_args=arguments)
    from pysqlite3 import dbapi2  # the bundled build, not the system's

    if dbapi2.sqlite_version_info < MIN_SQLITE:
        raise DatabaseError(f"SQLite {dbapi2.sqlite_version} is too old; install the package pysqlite3")
    path = sqlite_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), module=dbapi2)
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def wait_for_database(url: str, wait_s: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Return once the database answers; say so in the log while it does not. Raises DatabaseUnavailable.

    A SQLite file that cannot be opened now cannot be later.
    """
    wait_s = 0.0 if url.startswith("sqlite") else wait_s
    engine = open_database(url)
    deadline, pause_s = time.monotonic() + wait_s, 0.25
    try:
        while True:
            try:
                with engine.connect():
                    return
            except DBAPIError as error:
                reason = str(error.orig).strip()
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    shown = engine.url.render_as_string(hide_password=True)
                    raise DatabaseUnavailable(f"{shown} did not answer within {wait_s:g} s: {reason}") from error
                logger.warning("the database does not answer, waiting %.0f s more: %s", left_s, reason)
                sleep(min(pause_s, left_s))
                pause_s = min(_MAX_PAUSE_S, pause_s * 2)
    finally:
        engine.dispose()


def sqlite_path(url: str) -> Path:
    """The file behind `sqlite:PATH` or SQLAlchemy's `sqlite:///PATH`. Raises ValueError for databases in memory."""
    scheme, _, rest = url.partition(":")
    if scheme.partition("+")[0] != "sqlite":
        raise ValueError(f"not a sqlite URL: {url}")
    path = rest.partition("?")[0]
    if path.startswith("//"):
        path = path[3:]
    if not path or path == ":memory:":
        raise ValueError("a SQLite database needs a file: threads and processes share it")
    return Path(path)


@contextmanager
def write_transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that takes SQLite's write lock at its start, so that it waits its turn instead of failing late."""
    with engine.connect() as connection:
        connection = connection.execution_options(sqlite_begin="IMMEDIATE")
        with connection.begin():
            yield connection


def _configure_sqlite(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.isolation_level = None  # SQLAlchemy's BEGIN is ours, see _begin_sqlite
    cursor = dbapi_connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _enter_wal(cursor)
    cursor.execute("PRAGMA synchronous=FULL")  # NORMAL may lose acknowledged rows at power loss
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _enter_wal(cursor: Any) -> None:
    """The switch to WAL does not heed busy_timeout when two processes make it at once, so it is tried again."""
    deadline = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except Exception as error:  # pysqlite3's OperationalError is not sqlite3's
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: sa.Connection) -> None:
    mode = connection.get_execution_options().get("sqlite_begin", "DEFERRED")
    connection.exec_driver_sql(f"BEGIN {mode}")

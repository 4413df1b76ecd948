"""Opens a database by URL and gives it one writing thread with group commit.

Promises: a future of `Writer` resolves only after the transaction that holds its work has committed, and committed
means on disk (WAL, synchronous=FULL). SQLite comes from the bundled build; every SQLite file has one writing process.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from feedback.errors import DatabaseError, WriterClosed

T = TypeVar("T")

Store = Literal["gateway", "completions", "trainer"]
"""A set of tables that is migrated as one; a database may hold several."""

metadata = sa.MetaData()
"""The gateway's tables. Each module declares its own on it; the log and the trainer have theirs."""

MIN_SQLITE = (3, 51, 3)  # older ones have a rare WAL corruption with several connections
BUSY_TIMEOUT_MS = 5000
_SCHEMA_LOCK = 0x70726566  # any number that nobody else takes


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


def locate_store(store: Store, state_dir: Path, url: str) -> str:
    """The SQLAlchemy URL of a store's database. url: what the settings say; empty means a file in `state_dir`.

    Recorded answers share the gateway's PostgreSQL, and lie in a file of their own beside SQLite's gateway.db.
    """
    if url and not (store == "completions" and url.startswith("sqlite")):
        return url
    return f"sqlite:///{state_dir / store}.db"


def open_database(url: str) -> sa.Engine:
    """Open `sqlite:PATH`, `sqlite:///PATH` or `postgresql+…://…`. Makes the parent directory; creates no tables."""
    if not url.startswith("sqlite"):
        return sa.create_engine(url, pool_pre_ping=True)
    from pysqlite3 import dbapi2  # the bundled build, not the system's

    if dbapi2.sqlite_version_info < MIN_SQLITE:
        raise DatabaseError(f"SQLite {dbapi2.sqlite_version} is too old; install the package pysqlite3")
    path = sqlite_path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(sa.URL.create("sqlite", database=str(path)), module=dbapi2)
    sa.event.listen(engine, "connect", _configure_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


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


@contextmanager
def write_transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction that takes SQLite's write lock at its start, so that it waits its turn instead of failing late."""
    with engine.connect() as connection:
        connection = connection.execution_options(sqlite_begin="IMMEDIATE")
        with connection.begin():
            yield connection


def insert_or_ignore(connection: sa.Connection, table: sa.Table, values: Mapping[str, Any]) -> bool:
    """Insert one row unless a unique key holds it already; return whether it was inserted."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).values(**values).on_conflict_do_nothing()
    result = connection.execute(statement, execution_options={"preserve_rowcount": True})  # else unknown on PostgreSQL
    return result.rowcount == 1


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


class _Job:
    """One function, and the future its caller holds."""

    def __init__(self, fn: Callable[[sa.Connection], Any]) -> None:
        self.fn = fn
        self.future: Future[Any] = Future()
        self.result: Any = None
        self.error: BaseException | None = None


class Writer:
    """One thread that runs functions in transactions, as many of them in one as are waiting.

    Each function has a savepoint of its own: if it raises, only its own work is undone and its future fails. If the
    commit fails, all of them fail and nothing is stored. Functions must be short, and must not commit or roll back.
    """

    def __init__(self, engine: sa.Engine, *, max_batch: int = 256, max_waiting: int = 10_000) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._jobs: queue.Queue[_Job | None] = queue.Queue(max_waiting)
        self._closed = False
        self._lock = threading.Lock()  # no job may enter the queue behind the closing mark
        self._thread = threading.Thread(target=self._work, name="database-writer", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Functions that no transaction has taken yet."""
        return self._jobs.qsize()

    def run(self, fn: Callable[[sa.Connection], T]) -> Future[T]:
        """Queue `fn`; the future gives its result after the commit. Raises WriterClosed, DatabaseError when full."""
        job = _Job(fn)
        with self._lock:
            if self._closed:
                raise WriterClosed("the writer is closed")
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                raise DatabaseError("too many writes are waiting") from None
        return job.future

    async def arun(self, fn: Callable[[sa.Connection], T]) -> T:
        """`run`, awaited. Cancelling the wait does not undo the write."""
        return await asyncio.shield(asyncio.wrap_future(self.run(fn)))

    def close(self) -> None:
        """Finish what is queued, then stop. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                threading.Thread(target=self._jobs.put, args=(None,), daemon=True).start()  # the queue may be full
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            closing = self._take_waiting(batch)
            self._commit([job for job in batch if job.future.set_running_or_notify_cancel()])
            if closing:
                return

    def _take_waiting(self, batch: list[_Job]) -> bool:
        """Add what waits to the batch; return whether the closing mark was met."""
        while len(batch) < self._max_batch:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return False
            if job is None:
                return True
            batch.append(job)
        return False

    def _commit(self, batch: list[_Job]) -> None:
        try:
            with write_transaction(self._engine) as connection:
                for job in batch:
                    _run_in_savepoint(connection, job)
        except Exception as error:  # the edge of the writer's loop: whatever it is, every caller hears of it
            failure = _as_database_error(error)
            for job in batch:  # those too that were refused: perhaps for what is not stored now
                job.future.set_exception(failure)
            return
        for job in batch:
            if job.error is not None:
                job.future.set_exception(job.error)
            else:
                job.future.set_result(job.result)


def _run_in_savepoint(connection: sa.Connection, job: _Job) -> None:
    try:
        with connection.begin_nested():
            job.result = job.fn(connection)
    except Exception as error:
        job.error = error
        if not _is_transaction_open(connection):
            raise


def _is_transaction_open(connection: sa.Connection) -> bool:
    """False once SQLite has given up the whole transaction by itself (disk full, I/O error)."""
    return bool(getattr(connection.connection.dbapi_connection, "in_transaction", True))


def _as_database_error(error: Exception) -> Exception:
    if isinstance(error, (SQLAlchemyError, sqlite3.Error)):
        failure = DatabaseError(f"the transaction did not commit: {error}")
        failure.__cause__ = error
        return failure
    return error

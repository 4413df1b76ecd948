"""One writing thread with group commit.

Promises: a future of `Writer` resolves only after the transaction that holds its work has committed, and committed
means on disk. Every SQLite file has one writing process.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from feedback.database.connection import write_transaction
from feedback.errors import DatabaseError, WriterClosed

T = TypeVar("T")
Item = TypeVar("Item")

_HANGS_S = 1.0


class _Job:
    """One function and the future its caller holds; `item` if it is one of a group, which the function takes whole."""

    def __init__(self, fn: Callable[..., Any], future: Future[Any] | asyncio.Future[Any], item: Any = None) -> None:
        self.fn = fn
        self.future = future
        self.item = item
        self.is_grouped = isinstance(future, asyncio.Future)
        self.result: Any = None
        self.error: BaseException | None = None

    def begin(self) -> bool:
        """Whether a caller still waits for it: one that has cancelled does not."""
        return self.is_grouped or self.future.set_running_or_notify_cancel()  # type: ignore[union-attr]


class Writer:
    """One thread that runs functions in transactions, as many of them in one as are waiting.

    If a function raises, only its own work is undone and its future fails: each has a savepoint, but one that has the
    transaction to itself. If the commit fails, all of them fail and nothing is stored. Functions must be short,
    and must not commit, roll back, or go on after an error of the database. `guard` is called first in every transaction: what it
    raises, all of them get.
    """

    def __init__(
        self,
        engine: sa.Engine,
        *,
        max_batch: int = 256,
        max_waiting: int = 10_000,
        guard: Callable[[sa.Connection], None] | None = None,
    ) -> None:
        self._engine = engine
        self._guard = guard
        self._max_batch = max_batch
        self._jobs: queue.Queue[_Job | None] = queue.Queue(max_waiting)
        self._closed = False
        self._has_failed = False
        self._busy_since: float | None = None
        self._lock = threading.Lock()  # no job may enter the queue behind the closing mark
        self._thread = threading.Thread(target=self._work, name="database-writer", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        """Functions that no transaction has taken yet."""
        return self._jobs.qsize()

    @property
    def is_failing(self) -> bool:
        """Whether the last transaction failed, or the one under way has taken over a second."""
        since = self._busy_since
        return self._has_failed or (since is not None and time.monotonic() - since > _HANGS_S)

    def run(self, fn: Callable[[sa.Connection], T]) -> Future[T]:
        """Queue `fn`; the future gives its result after the commit. Raises WriterClosed, DatabaseError when full."""
        future: Future[T] = Future()
        self._put(_Job(fn, future))
        return future

    async def arun(self, fn: Callable[[sa.Connection], T]) -> T:
        """`run`, awaited. Cancelling the wait does not undo the write."""
        return await asyncio.shield(asyncio.wrap_future(self.run(fn)))

    async def aread(self, fn: Callable[[sa.Connection], T]) -> T:
        """What `fn` reads on a connection of its own, in a thread of its own: writes need not wait for it.

        Raises DatabaseError.
        """

        def read() -> T:
            try:
                with self._engine.connect() as connection:
                    return fn(connection)
            except SQLAlchemyError as error:
                raise DatabaseError(f"the database could not be read: {error}") from error

        return await asyncio.to_thread(read)

    async def arun_grouped(self, fn: Callable[[sa.Connection, list[Item]], Sequence[T | Exception]], item: Item) -> T:
        """`arun` for what comes in numbers: `fn` gets all items of its transaction, and returns a result for each.

        A result that is an exception is raised here, and undoes nothing: such an item must have stored nothing. If
        `fn` raises, each item is tried alone. `fn` must be the same object in every call.
        """
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._put(_Job(fn, future, item))
        return await future

    def close(self) -> None:
        """Finish what is queued, then stop. Idempotent."""
        with self._lock:
            if not self._closed:
                self._closed = True
                threading.Thread(target=self._jobs.put, args=(None,), daemon=True).start()  # the queue may be full
        self._thread.join()

    def _put(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise WriterClosed("the writer is closed")
            try:
                self._jobs.put_nowait(job)
            except queue.Full:
                raise DatabaseError("too many writes are waiting") from None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            closing = self._take_waiting(batch)
            self._busy_since = time.monotonic()
            self._commit([job for job in batch if job.begin()])
            self._busy_since = None
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
                if self._guard is not None:
                    self._guard(connection)
                if len(batch) == 1:
                    _run_alone(connection, batch[0])
                else:
                    for jobs in _group(batch):
                        _run_in_savepoint(connection, jobs)
        except Exception as error:  # the edge of the writer's loop: whatever it is, every caller hears of it
            self._has_failed = True
            for job in batch:  # those too that were refused: perhaps for what is not stored now
                job.error = _as_database_error(error)
        else:
            self._has_failed = False
        _resolve(batch)


def _group(batch: list[_Job]) -> list[list[_Job]]:
    """Jobs in their order, but those of one group together, at the place of the first."""
    groups: list[list[_Job]] = []
    of_fn: dict[int, list[_Job]] = {}
    for job in batch:
        jobs = of_fn.get(id(job.fn)) if job.is_grouped else None
        if jobs is not None:
            jobs.append(job)
            continue
        groups.append([job])
        if job.is_grouped:
            of_fn[id(job.fn)] = groups[-1]
    return groups


def _run(connection: sa.Connection, jobs: list[_Job]) -> None:
    """Do the work of one job, or of one group."""
    if not jobs[0].is_grouped:
        jobs[0].result = jobs[0].fn(connection)
        return
    results = jobs[0].fn(connection, [job.item for job in jobs])
    for job, result in zip(jobs, results, strict=True):
        job.result, job.error = (None, result) if isinstance(result, Exception) else (result, None)


def _run_alone(connection: sa.Connection, job: _Job) -> None:
    """The transaction holds no other work: if the job raises, all of it is undone, and needs no savepoint."""
    try:
        _run(connection, [job])
    except Exception as error:
        job.error = error
        if not _is_transaction_open(connection):
            raise
        connection.rollback()


def _run_in_savepoint(connection: sa.Connection, jobs: list[_Job]) -> None:
    try:
        with connection.begin_nested():
            _run(connection, jobs)
    except Exception as error:
        if not _is_transaction_open(connection):
            raise
        if len(jobs) == 1:
            jobs[0].error = error
            return
        for job in jobs:  # one of them may be to blame, and the others are not
            _run_in_savepoint(connection, [job])


def _is_transaction_open(connection: sa.Connection) -> bool:
    """False once SQLite has given up the whole transaction by itself (disk full, I/O error), or the server is gone."""
    if connection.invalidated:
        return False
    return bool(getattr(connection.connection.dbapi_connection, "in_transaction", True))


def _resolve(batch: list[_Job]) -> None:
    """Tell every caller; an event loop is woken once for all of its own."""
    of_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in batch:
        if isinstance(job.future, asyncio.Future):
            of_loop.setdefault(job.future.get_loop(), []).append(job)
        elif job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
    for loop, jobs in of_loop.items():
        with suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(_resolve_here, jobs)


def _resolve_here(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():  # nobody waits any more
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _as_database_error(error: Exception) -> Exception:
    if isinstance(error, (SQLAlchemyError, sqlite3.Error)):
        failure = DatabaseError(f"the transaction did not commit: {error}")
        failure.__cause__ = error
        return failure
    return error

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.database import (
    Writer,
    create_tables,
    insert_missing,
    insert_or_ignore,
    open_database,
    sqlite_path,
    write_transaction,
)
from feedback.errors import DatabaseError, WriterClosed

tables = sa.MetaData()
marks = sa.Table("marks", tables, sa.Column("id", sa.Integer, primary_key=True))


@pytest.fixture
def engine(database_url: str) -> Iterator[sa.Engine]:
    engine = open_database(database_url)
    create_tables(engine, tables)
    yield engine
    engine.dispose()


def add(number: int) -> Callable[[sa.Connection], int]:
    def insert(connection: sa.Connection) -> int:
        connection.execute(sa.insert(marks).values(id=number))
        return number

    return insert


def list_marks(engine: sa.Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.execute(sa.select(marks.c.id).order_by(marks.c.id)).scalars())


def test_urls_name_files() -> None:
    assert sqlite_path("sqlite:state/a.db") == sqlite_path("sqlite:///state/a.db") == Path("state/a.db")
    assert sqlite_path("sqlite:/var/a.db") == sqlite_path("sqlite:////var/a.db") == Path("/var/a.db")
    for url in ("sqlite:", "sqlite://", "sqlite::memory:", "postgresql://host/db"):
        with pytest.raises(ValueError):
            sqlite_path(url)


def test_a_url_without_a_driver_means_the_one_that_is_installed_with_us() -> None:
    for url in ("postgresql://host/name?connect_timeout=3", "postgresql+psycopg://host/name"):
        database = open_database(url)  # connects to nobody yet
        assert (database.dialect.driver, database.url.host) == ("psycopg", "host")
        database.dispose()


def test_sqlite_is_recent_durable_and_checks_references(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:{tmp_path / 'deep' / 'test.db'}")
    with engine.connect() as connection:
        names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        assert [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names] == ["wal", 2, 1, 5000]
        version = connection.exec_driver_sql("SELECT sqlite_version()").scalar()
        assert tuple(map(int, str(version).split("."))) >= (3, 51, 3)
    engine.dispose()


def test_future_resolves_with_the_result_after_the_commit(engine: sa.Engine) -> None:
    writer = Writer(engine)
    assert writer.run(add(7)).result(10) == 7
    assert list_marks(engine) == [7]
    writer.close()


def hold_writer(writer: Writer) -> threading.Event:
    """Keep the writer busy until the event is set, so that what follows shares one transaction."""
    release, entered = threading.Event(), threading.Event()

    def wait(connection: sa.Connection) -> None:
        entered.set()
        release.wait(10)

    writer.run(wait)
    entered.wait(10)
    return release


def test_waiting_functions_share_one_transaction(engine: sa.Engine) -> None:
    commits: list[int] = []
    sa.event.listen(engine, "commit", lambda connection: commits.append(1))
    writer = Writer(engine)
    release = hold_writer(writer)
    futures = [writer.run(add(i)) for i in range(50)]
    assert not any(future.done() for future in futures)
    release.set()
    assert [future.result(10) for future in futures] == list(range(50))
    assert len(commits) == 2  # the one that waited, and all the others together
    writer.close()


def test_a_failing_function_undoes_its_own_work_only(engine: sa.Engine) -> None:
    writer = Writer(engine)
    release = hold_writer(writer)

    def add_and_fail(connection: sa.Connection) -> None:
        connection.execute(sa.insert(marks).values(id=2))
        raise KeyError("no")

    one, two, three = writer.run(add(1)), writer.run(add_and_fail), writer.run(add(3))
    release.set()
    assert (one.result(10), three.result(10)) == (1, 3)
    with pytest.raises(KeyError):
        two.result(10)
    assert list_marks(engine) == [1, 3]
    writer.close()


def test_a_function_alone_in_its_transaction_needs_no_savepoint_and_is_undone_whole(engine: sa.Engine) -> None:
    statements: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    writer = Writer(engine)

    def add_and_fail(connection: sa.Connection) -> None:
        connection.execute(sa.insert(marks).values(id=1))
        connection.execute(sa.insert(marks).values(id=1))

    with pytest.raises(sa.exc.IntegrityError):
        writer.run(add_and_fail).result(10)
    assert not writer.is_failing and writer.run(add(2)).result(10) == 2
    writer.close()
    assert list_marks(engine) == [2] and not any("SAVEPOINT" in statement for statement in statements)


def test_a_failing_commit_fails_everyone_and_stores_nothing(engine: sa.Engine) -> None:
    def refuse(connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, OSError("no space left"))

    writer = Writer(engine)
    sa.event.listen(engine, "commit", refuse)
    future = writer.run(add(1))
    with pytest.raises(DatabaseError, match="no space left"):
        future.result(10)
    sa.event.remove(engine, "commit", refuse)
    assert list_marks(engine) == []
    assert writer.run(add(2)).result(10) == 2
    writer.close()


def test_closing_finishes_what_waits_and_takes_no_more(engine: sa.Engine) -> None:
    writer = Writer(engine)
    release = hold_writer(writer)
    futures = [writer.run(add(i)) for i in range(5)]
    release.set()
    writer.close()
    writer.close()
    assert [future.result(0) for future in futures] == list(range(5))
    with pytest.raises(WriterClosed):
        writer.run(add(9))


def test_a_full_queue_is_refused(engine: sa.Engine) -> None:
    writer = Writer(engine, max_waiting=1)
    release = hold_writer(writer)
    writer.run(add(1))
    with pytest.raises(DatabaseError, match="too many"):
        writer.run(add(2))
    release.set()
    writer.close()
    assert list_marks(engine) == [1]


def test_a_failing_commit_fails_those_too_that_were_refused_because_of_it(engine: sa.Engine) -> None:
    """What is not stored is no reason to refuse another: it must be heard as an outage, and asked again."""

    def refuse(connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, OSError("no space left"))

    def complain(connection: sa.Connection) -> None:
        if connection.execute(sa.select(marks.c.id)).first() is not None:
            raise KeyError("another one was faster")

    writer = Writer(engine)
    release = hold_writer(writer)
    stored, refused = writer.run(add(1)), writer.run(complain)
    sa.event.listen(engine, "commit", refuse)
    release.set()
    for future in (stored, refused):
        with pytest.raises(DatabaseError, match="no space left"):
            future.result(10)
    sa.event.remove(engine, "commit", refuse)
    writer.run(complain).result(10)
    writer.close()


def add_all(connection: sa.Connection, numbers: list[int]) -> list[int | Exception]:
    """Refuses multiples of ten as they come, and fails as a whole at a negative one."""
    fine = [number for number in numbers if number % 10]
    connection.execute(sa.insert(marks), [{"id": number} for number in fine] or [])
    if min(numbers) < 0:
        raise KeyError("negative")
    return [ZeroDivisionError() if number % 10 == 0 else number for number in numbers]


async def gather_group(writer: Writer, numbers: list[int]) -> list[object]:
    """What each of them gets, all of them in one transaction."""
    release = hold_writer(writer)
    tasks = [asyncio.create_task(writer.arun_grouped(add_all, number)) for number in numbers]
    await asyncio.sleep(0)
    release.set()
    return list(await asyncio.gather(*tasks, return_exceptions=True))


async def test_a_group_is_one_call_and_a_result_for_each(engine: sa.Engine) -> None:
    statements: list[str] = []
    sa.event.listen(engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    writer = Writer(engine)
    results = await gather_group(writer, [1, 20, 3, 4])
    assert [result if isinstance(result, int) else type(result) for result in results] == [1, ZeroDivisionError, 3, 4]
    assert sum(statement.startswith("INSERT") for statement in statements) == 1
    writer.close()
    assert list_marks(engine) == [1, 3, 4]


async def test_one_that_spoils_its_group_spoils_itself_alone(engine: sa.Engine) -> None:
    writer = Writer(engine)
    results = await gather_group(writer, [1, -7, 3])
    assert [result if isinstance(result, int) else type(result) for result in results] == [1, KeyError, 3]
    writer.close()
    assert list_marks(engine) == [1, 3]


async def test_a_group_whose_commit_fails_fails_whole_and_the_writer_says_that_it_fails(engine: sa.Engine) -> None:
    def refuse(connection: sa.Connection) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, OSError("no space left"))

    writer = Writer(engine)
    assert not writer.is_failing
    sa.event.listen(engine, "commit", refuse)
    results = await gather_group(writer, [1, 20])
    assert [type(result) for result in results] == [DatabaseError, DatabaseError]
    assert writer.is_failing
    sa.event.remove(engine, "commit", refuse)
    assert await writer.arun_grouped(add_all, 5) == 5
    assert not writer.is_failing
    writer.close()
    assert list_marks(engine) == [5]


async def test_what_is_read_does_not_wait_for_what_is_written(engine: sa.Engine) -> None:
    writer = Writer(engine)
    await writer.arun_grouped(add_all, 1)
    release = hold_writer(writer)
    waiting = asyncio.create_task(writer.arun_grouped(add_all, 2))
    assert await writer.aread(lambda connection: connection.execute(sa.select(marks.c.id)).scalars().all()) == [1]
    with pytest.raises(DatabaseError, match="could not be read"):
        await writer.aread(lambda connection: connection.exec_driver_sql("SELECT * FROM nothing"))
    release.set()
    assert await waiting == 2
    writer.close()


async def test_who_stops_waiting_for_a_group_breaks_nothing(engine: sa.Engine) -> None:
    writer = Writer(engine)
    release = hold_writer(writer)
    waiting = asyncio.create_task(writer.arun_grouped(add_all, 1))
    await asyncio.sleep(0)
    waiting.cancel()
    release.set()
    assert await writer.arun_grouped(add_all, 2) == 2
    writer.close()
    assert list_marks(engine) == [1, 2]  # cancelling the wait does not undo the write


async def test_an_item_that_comes_alone_and_fails_is_tried_once(engine: sa.Engine) -> None:
    writer = Writer(engine)
    calls: list[list[int]] = []

    def add_and_note(connection: sa.Connection, numbers: list[int]) -> list[int | Exception]:
        calls.append(numbers)
        return add_all(connection, numbers)

    with pytest.raises(KeyError):
        await writer.arun_grouped(add_and_note, -1)
    assert await writer.arun_grouped(add_and_note, 3) == 3
    writer.close()
    assert calls == [[-1], [3]] and list_marks(engine) == [3]


async def test_arun_gives_the_result(engine: sa.Engine) -> None:
    writer = Writer(engine)
    assert await writer.arun(add(3)) == 3
    writer.close()


def test_insert_or_ignore_tells_whether_it_inserted(engine: sa.Engine) -> None:
    with write_transaction(engine) as connection:
        assert insert_or_ignore(connection, marks, {"id": 1})
        assert not insert_or_ignore(connection, marks, {"id": 1})


def test_only_missing_rows_are_inserted(engine: sa.Engine) -> None:
    with write_transaction(engine) as connection:
        insert_missing(connection, marks, [])
        insert_missing(connection, marks, [{"id": 1}])
        insert_missing(connection, marks, [{"id": 1}, {"id": 2}, {"id": 2}, {"id": 3}])
    assert list_marks(engine) == [1, 2, 3]


def test_writers_of_two_engines_wait_for_each_other(engine: sa.Engine, database_url: str) -> None:
    other = open_database(database_url)
    one, two = Writer(engine), Writer(other)
    futures = [writer.run(add(2 * i + k)) for i in range(50) for k, writer in enumerate((one, two))]
    assert [future.result(20) for future in futures] == list(range(100))
    one.close()
    two.close()
    other.dispose()

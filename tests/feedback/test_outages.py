"""An outage takes a line of the log; a mistake of ours says where it was made."""

import logging
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.database import Writer, open_database
from feedback.errors import DatabaseError, LogUnavailable
from feedback.outages import is_outage, log_failure


def fail(tmp_path: Path, statement: str) -> Exception:
    """What the writer raises for a statement."""
    database = open_database(f"sqlite:///{tmp_path / 'some.db'}")
    writer = Writer(database)
    writer.run(lambda connection: connection.exec_driver_sql("CREATE TABLE one (id INTEGER PRIMARY KEY)")).result()
    writer.run(lambda connection: connection.exec_driver_sql("INSERT INTO one VALUES (1)")).result()
    error = writer.run(lambda connection: connection.exec_driver_sql(statement)).exception()
    writer.close()
    database.dispose()
    assert isinstance(error, Exception)
    return error


def test_a_database_that_refuses_connections_is_an_outage() -> None:
    database = open_database("postgresql+psycopg://nobody@127.0.0.1:1/none")
    with pytest.raises(sa.exc.OperationalError) as refused:
        database.connect()
    assert is_outage(refused.value)
    wrapped = DatabaseError("the transaction did not commit")
    wrapped.__cause__ = refused.value
    assert is_outage(wrapped)


def test_a_statement_that_is_wrong_is_none(tmp_path: Path) -> None:
    error = fail(tmp_path, "INSERT INTO one VALUES (1)")
    assert not is_outage(error)
    wrapped = DatabaseError("the transaction did not commit")
    wrapped.__cause__ = error
    assert not is_outage(wrapped)
    assert not is_outage(KeyError("x"))


def test_an_outage_takes_one_line(caplog: pytest.LogCaptureFixture) -> None:
    log_failure(logging.getLogger("loop"), "the tick failed", LogUnavailable("it is gone\n[SQL: SELECT 1]"))
    [record] = caplog.records
    assert (record.getMessage(), record.exc_info) == ("the tick failed: it is gone", None)


def test_a_mistake_says_where_it_was_made(caplog: pytest.LogCaptureFixture) -> None:
    log_failure(logging.getLogger("loop"), "the tick failed", KeyError("x"), {"request_id": "r"})
    [record] = caplog.records
    assert record.exc_info is not None and record.exc_info[0] is KeyError
    assert record.request_id == "r"  # type: ignore[attr-defined]

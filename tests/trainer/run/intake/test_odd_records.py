"""Intake over both databases: what one record holds makes a dead letter of it, and never stops its neighbours."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from feedback import inbox
from feedback.database import Writer, create_tables, write_transaction
from feedback.dead_letters import load_dead_letters, retry_dead_letters
from feedback.events import encode_headers
from feedback.inbox import intake
from feedback.log import NewRecord, Record
from feedback.log.sqlite import SqliteLog
from feedback.replay import replay
from tests.trainer.fakes import make_choice, make_record
from tests.trainer.stores import find_database, open_empty
from trainer.run.intake.consumer import consume_all
from trainer.run.status.metrics import Metrics

TOPIC = "t"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    with open_empty(find_database(request.param, request, tmp_path)) as engine:
        yield engine


@pytest.fixture
def log(tmp_path: Path) -> Any:
    opened = SqliteLog(f"sqlite:{tmp_path / 'log.db'}")
    yield opened
    opened.close()


@pytest.fixture
def consume(log: SqliteLog, database: sa.Engine) -> Any:
    """Reads until there is nothing more; fails if a look raises."""
    writer, metrics = Writer(database), Metrics()

    def run() -> None:
        while consume_all(log, TOPIC, log.partitions(TOPIC), database, writer, 500, metrics):
            pass

    yield run
    writer.close()


def make_odd(number: int, **comparison: Any) -> NewRecord:
    """A choice whose comparison says something odd."""
    body = msgspec.to_builtins(make_choice(number))
    body["comparison"] |= comparison
    headers = encode_headers(f"event-{number}", "prefloop.choice.v1", source="t", key="k", time=float(number))
    return NewRecord(key=b"k", value=json.dumps(body).encode(), headers=headers)


def list_stored(database: sa.Engine) -> set[str]:
    with database.connect() as connection:
        return set(connection.execute(sa.select(inbox.preferences.c.event_id)).scalars())


def list_reasons(database: sa.Engine) -> list[str]:
    with database.connect() as connection:
        return sorted(connection.execute(sa.select(inbox.dead_letters.c.reason)).scalars())


@pytest.mark.parametrize("field", ["id", "policy", "app", "user"])
def test_nul_in_a_column_makes_one_dead_letter(
    field: str, log: SqliteLog, database: sa.Engine, consume: Callable[[], None]
) -> None:
    log.append(TOPIC, [make_record(0), make_odd(1, **{field: "a\0b"}), make_record(2)])
    consume()
    assert list_stored(database) == {"event-0", "event-2"}
    [reason] = list_reasons(database)
    assert "NUL" in reason and "\0" not in reason


def test_odd_headers_make_dead_letters(log: SqliteLog, database: sa.Engine, consume: Callable[[], None]) -> None:
    def change(number: int, **headers: bytes) -> NewRecord:
        record = make_record(number)
        return replace(record, headers={**record.headers, **headers})

    odd = [
        change(1, ce_id=b"a\0b"), change(2, ce_id=b"\xff"), change(3, ce_type=b"\0"), change(4, ce_type=b"\xed\xa0\x80"),
        change(5, ce_time=b"yesterday"), change(6, ce_time=b"0001-01-01T00:00:00"), change(7, ce_id=b""),
    ]  # fmt: skip
    log.append(TOPIC, [make_record(0), *odd, make_record(8)])
    consume()
    assert {"event-0", "event-8"} <= list_stored(database)
    assert len(list_stored(database)) + len(list_reasons(database)) == 9


def test_a_value_that_nobody_thought_of_makes_one_dead_letter(
    log: SqliteLog, database: sa.Engine, consume: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = intake._read_row

    def read_odd(record: Record) -> Any:
        row = read(record)
        if row is not None and row.values["event_id"] == "event-1":
            row.values["used_as_new"] = 10**30
        return row

    monkeypatch.setattr(intake, "_read_row", read_odd)
    log.append(TOPIC, [make_record(number) for number in range(4)])
    consume()
    assert list_stored(database) == {"event-0", "event-2", "event-3"}
    assert len(list_reasons(database)) == 1
    with write_transaction(database) as connection:  # still so: it stays where it is, and the others are not held up
        [letter] = load_dead_letters(connection)
        assert retry_dead_letters(connection, [letter])[0].problem
    assert len(list_reasons(database)) == 1
    monkeypatch.undo()
    with write_transaction(database) as connection:
        assert retry_dead_letters(connection, [letter])[0].problem == ""
    assert list_stored(database) == {f"event-{number}" for number in range(4)}


def test_a_replay_passes_over_what_no_database_stores(log: SqliteLog, database: sa.Engine) -> None:
    create_tables(database, inbox.metadata)
    log.append(TOPIC, [make_record(0), make_odd(1, app="\0"), make_record(2)])
    done = replay(log, TOPIC, database, {partition: 0 for partition in log.partitions(TOPIC)})
    assert (done.num_preferences, done.num_dead_letters) == (2, 1)


def test_a_database_that_is_gone_makes_no_dead_letters(
    log: SqliteLog, database: sa.Engine, consume: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    log.append(TOPIC, [make_record(0), make_record(1)])

    def refuse(connection: sa.Connection, *_: Any) -> int:
        raise OperationalError("INSERT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(intake, "_store_rows", refuse)
    with pytest.raises(OperationalError):
        consume()
    monkeypatch.undo()
    consume()
    assert list_stored(database) == {"event-0", "event-1"}
    assert list_reasons(database) == []

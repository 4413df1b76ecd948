"""The trainer's store comes back from the log alone, and a replay never leaves a hole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.database import write_transaction
from feedback.errors import ReplayError
from feedback.events import PREFERRED, Erasure, new_event
from feedback.log import NewRecord
from feedback.log.sqlite import SqliteLog
from feedback.replay import is_open_elsewhere, replay
from feedback.scan import find_starts
from tests.feedback.samples import make_choice, make_comparison, make_signal
from tests.feedback.stores import TOPIC, consume_all, dump, make_new, opened_log, opened_store

NUM_CHOICES = 40


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    """Choices, signals, repeats, events that are not stored, and three records that cannot be read."""
    with opened_log(tmp_path / "log.db") as log:
        for number in range(NUM_CHOICES):
            comparison = make_comparison(f"cmp-{number}", user=f"user-{number % 7}")
            choice = make_choice(comparison, PREFERRED[number % 5])
            event = new_event(choice, source="test", now=1002.5, event_id=f"c-{number}")
            shown = new_event(comparison, source="test", now=1000.0, event_id=f"s-{number}")
            log.append(TOPIC, [make_new(shown), make_new(event), *([make_new(event)] if number % 9 == 0 else [])])
        for number in range(5):
            signal = make_signal(f"chatcmpl-{number}", messages=None if number == 3 else [])
            log.append(TOPIC, [make_new(new_event(signal, source="test", now=1.0, event_id=f"g-{number}"))])
        erasure = new_event(Erasure(subject="user-1", created_at=1.0), source="test", now=1.0)
        bad = NewRecord(key=b"k", value=b"{", headers={})
        log.append(TOPIC, [make_new(erasure), make_new(erasure, ce_type=b"prefloop.erasure.v2"), bad, bad])
        yield log


@pytest.fixture
def store(log: SqliteLog, tmp_path: Path) -> Iterator[sa.Engine]:
    """What the trainer made of the log."""
    with opened_store(tmp_path / "trainer.db") as store:
        consume_all(log, store)
        yield store


def test_an_empty_store_comes_back_row_for_row(log: SqliteLog, store: sa.Engine, tmp_path: Path) -> None:
    with opened_store(tmp_path / "new.db") as new:
        done = replay(log, TOPIC, new, find_starts(log, TOPIC))
        assert dump(new) == dump(store)
        assert (done.num_preferences, done.num_signals, done.num_dead_letters) == (NUM_CHOICES, 5, 3)
        with store.connect() as connection:
            assert done.offsets == inbox.load_offsets(connection, TOPIC)
    assert len(dump(store)["preferences"]) == NUM_CHOICES


def test_a_store_that_lost_rows_gets_them_back_and_keeps_what_the_trainer_noted(
    log: SqliteLog, store: sa.Engine
) -> None:
    with write_transaction(store) as connection:
        inbox.mark_used(connection, [1, 2, 3], as_new=True)
    before = dump(store)
    with write_transaction(store) as connection:
        num_lost = connection.execute(sa.delete(inbox.preferences).where(inbox.preferences.c.id > 30)).rowcount
        connection.execute(sa.delete(inbox.signals))
        connection.execute(sa.delete(inbox.dead_letters))
    done = replay(log, TOPIC, store, find_starts(log, TOPIC))
    assert dump(store) == before
    assert (done.num_preferences, done.num_signals, done.num_dead_letters) == (num_lost, 5, 3)
    assert 0 < num_lost < NUM_CHOICES


def test_a_store_that_lies_behind_catches_up(log: SqliteLog, store: sa.Engine) -> None:
    later = new_event(make_choice(make_comparison("cmp-late")), source="test", now=1.0, event_id="late")
    log.append(TOPIC, [make_new(later)])
    done = replay(log, TOPIC, store, find_starts(log, TOPIC))
    assert (done.num_preferences, done.num_signals) == (1, 0)
    consume_all(log, store)  # the trainer goes on behind it
    assert len(dump(store)["preferences"]) == NUM_CHOICES + 1


def test_a_replay_that_would_leave_a_hole_is_refused(log: SqliteLog, store: sa.Engine) -> None:
    before = dump(store)
    with write_transaction(store) as connection:
        connection.execute(sa.update(inbox.offsets).values(next=1))
    with pytest.raises(ReplayError, match="would skip"):
        replay(log, TOPIC, store, find_starts(log, TOPIC, offset=3))
    assert dump(store, inbox.preferences)["preferences"] == before["preferences"]


def test_what_an_empty_store_leaves_out_is_noted_as_a_gap(log: SqliteLog, tmp_path: Path) -> None:
    starts = find_starts(log, TOPIC, offset=5)
    with opened_store(tmp_path / "new.db") as new:
        replay(log, TOPIC, new, starts)
        assert dump(new, inbox.gaps)["gaps"] == [(TOPIC, partition, 0, 5) for partition in sorted(starts)]
        num_rows = len(dump(new)["preferences"])
        assert 0 < num_rows < NUM_CHOICES
        consume_all(log, new)
        assert len(dump(new)["preferences"]) == num_rows  # the trainer does not read it either


def test_replaying_twice_adds_nothing(log: SqliteLog, store: sa.Engine) -> None:
    before = dump(store)
    done = replay(log, TOPIC, store, find_starts(log, TOPIC))
    assert (done.num_preferences, done.num_signals, done.num_dead_letters) == (0, 0, 0)
    assert done.num_records > 2 * NUM_CHOICES
    assert dump(store) == before


def test_a_replay_that_was_cut_off_is_run_again(log: SqliteLog, store: sa.Engine, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def die(num_records: int) -> None:
        raise Killed

    with opened_store(tmp_path / "new.db") as new:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("feedback.replay._BATCH", 20)
            with pytest.raises(Killed):
                replay(log, TOPIC, new, find_starts(log, TOPIC), die)
        assert 0 < len(dump(new)["preferences"]) < NUM_CHOICES
        replay(log, TOPIC, new, find_starts(log, TOPIC))
        assert dump(new) == dump(store)


def test_a_store_that_another_process_has_open_is_seen(store: sa.Engine, tmp_path: Path) -> None:
    url = f"sqlite:{tmp_path / 'trainer.db'}"
    store.dispose()
    assert not is_open_elsewhere(url)
    assert not is_open_elsewhere(f"sqlite:{tmp_path / 'missing.db'}")
    code = (
        "import sys; from feedback.database import open_database\n"
        "connection = open_database(sys.argv[1]).connect(); connection.exec_driver_sql('SELECT 1 FROM preferences')\n"
        "connection.rollback(); print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdin and other.stdout and other.stdout.readline() == "open\n"
        assert is_open_elsewhere(url)
        other.stdin.close()
        other.wait(10)
    assert not is_open_elsewhere(url)
    with store.connect() as connection:
        assert inbox.count_preferences(connection) == NUM_CHOICES  # looking changed nothing

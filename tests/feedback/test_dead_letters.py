"""Dead letters: shown with their bytes, stored when a release can read them, and never gone without a trace."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest
import sqlalchemy as sa

from feedback import events, inbox
from feedback.database import write_transaction
from feedback.dead_letters import (
    DeadLetter,
    discard_dead_letters,
    find_dead_letter,
    load_dead_letters,
    retry_dead_letters,
)
from feedback.errors import FutureVersion
from feedback.events import Choice, new_event
from feedback.log.base import Record
from tests.feedback.samples import make_choice, make_comparison, make_record
from tests.feedback.stores import dump, make_new


def make_letter(offset: int, event_type: bytes, *, value: bytes | None = None) -> Record:
    choice = make_choice(make_comparison(f"cmp-{offset}"))
    new = make_new(new_event(choice, source="test", now=1.0, event_id=f"event-{offset}"), ce_type=event_type)
    return Record(
        key=new.key,
        value=value or new.value,
        headers=new.headers,
        topic="t",
        partition=0,
        offset=offset,
        timestamp_ms=5,
    )


@pytest.fixture
def store(trainer_database: sa.Engine) -> Iterator[sa.Engine]:
    """A store with one choice, a choice of a later release, and poison."""
    with write_transaction(trainer_database) as connection:
        good = make_record(0, make_choice(make_comparison("cmp-0")))
        future = make_letter(1, b"prefloop.verdict.v1")
        poison = make_letter(2, b"prefloop.choice.v1", value=b"\x00{")
        inbox.consume(connection, [good, future, poison])
    yield trainer_database


def load(store: sa.Engine, *, with_discarded: bool = False) -> list[DeadLetter]:
    with store.connect() as connection:
        return load_dead_letters(connection, with_discarded=with_discarded)


def retry(store: sa.Engine) -> list[str]:
    with write_transaction(store) as connection:
        return [one.problem for one in retry_dead_letters(connection, load_dead_letters(connection))]


def test_letters_are_listed_with_their_bytes_and_places(store: sa.Engine) -> None:
    future, poison = load(store)
    assert (future.record.offset, future.error, future.record.headers["ce_type"]) == (
        1,
        "FutureVersion",
        b"prefloop.verdict.v1",
    )
    assert (poison.record.value, poison.error, poison.discarded_at) == (b"\x00{", "PoisonEvent", None)
    with store.connect() as connection:
        assert find_dead_letter(connection, "t", 0, 2) == poison
        assert find_dead_letter(connection, "t", 0, 0) is None


def test_what_still_cannot_be_read_stays(store: sa.Engine) -> None:
    before = dump(store)
    problems = retry(store)
    assert [problem.partition(":")[0] for problem in problems] == ["FutureVersion", "PoisonEvent"]
    assert dump(store) == before


def test_after_an_upgrade_a_letter_becomes_what_it_says(store: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(events.BODIES, "prefloop.verdict.v1", Choice)  # the later release
    offsets = dump(store, inbox.offsets)
    assert retry(store)[0] == ""
    assert [letter.record.offset for letter in load(store)] == [2]
    with store.connect() as connection:
        assert [row.event_id for row in inbox.load_preferences(connection)] == ["event-0", "event-1"]
    assert dump(store, inbox.offsets) == offsets  # its place was passed long ago


def test_a_letter_that_is_stored_already_is_not_stored_twice(store: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with write_transaction(store) as connection:
        again = make_record(3, make_choice(make_comparison("cmp-1")), event_id="event-1")
        inbox.consume(connection, [again])
    monkeypatch.setitem(events.BODIES, "prefloop.verdict.v1", Choice)
    retry(store)
    assert len(dump(store)["preferences"]) == 2
    assert len(load(store)) == 1


def test_storing_and_leaving_the_letters_are_one_transaction(store: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(events.BODIES, "prefloop.verdict.v1", Choice)
    before = dump(store)
    with pytest.raises(KeyError), write_transaction(store) as connection:
        retry_dead_letters(connection, load_dead_letters(connection))
        raise KeyError
    assert dump(store) == before


def test_a_discarded_letter_is_marked_and_kept(store: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    future = load(store)[0]
    with write_transaction(store) as connection:
        assert discard_dead_letters(connection, [future], "sent by a test bench", 7.0) == 1
    assert [letter.record.offset for letter in load(store)] == [2]
    kept = load(store, with_discarded=True)[0]
    assert (kept.discard_reason, kept.discarded_at, kept.record) == ("sent by a test bench", 7.0, future.record)
    with write_transaction(store) as connection:
        assert discard_dead_letters(connection, [kept], "again", 8.0) == 0  # the first reason stands
    monkeypatch.setitem(events.BODIES, "prefloop.verdict.v1", Choice)
    assert len(retry(store)) == 1  # not tried with the others
    with write_transaction(store) as connection:  # but when it is named
        assert retry_dead_letters(connection, [kept])[0].problem == ""
    assert [letter.record.offset for letter in load(store, with_discarded=True)] == [2]


def test_discarding_needs_a_reason(store: sa.Engine) -> None:
    with pytest.raises(ValueError, match="reason"), write_transaction(store) as connection:
        discard_dead_letters(connection, load_dead_letters(connection), " ", 1.0)


def test_the_error_of_a_letter_says_which_release_can_read_it(store: sa.Engine) -> None:
    letter = load(store)[0]
    assert letter.error == FutureVersion.__name__ and "prefloop.verdict.v1" in letter.reason
    assert msgspec.json.decode(letter.record.value)["preferred"] == "first"

from __future__ import annotations

from collections.abc import Sequence

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feedback.database import create_tables, open_database, write_transaction
from feedback.errors import PositionMismatch
from feedback.events import Demonstration
from feedback.inbox import (
    UNDECIDED,
    Arrival,
    Placement,
    consume,
    count_dead_letters,
    count_preferences,
    count_signals,
    dead_letters,
    demonstrations,
    gaps,
    key_prompt,
    load_offset,
    load_offsets,
    mark_used,
    metadata,
    record_gap,
    signals,
)
from feedback.log.base import Record
from tests.feedback.reading import load_preferences, load_signals
from tests.feedback.samples import make_choice, make_comparison, make_record, make_signal


def take(database: sa.Engine, *records: Record, read_from: int | None = None) -> int:
    with write_transaction(database) as connection:
        return consume(connection, records, read_from=read_from)


def make_records(*offsets: int) -> list[Record]:
    return [make_record(offset, make_choice(make_comparison(f"cmp-{offset}"))) for offset in offsets]


def test_choices_become_preferences_and_the_offset_moves(trainer_database: sa.Engine) -> None:
    assert take(trainer_database, *make_records(0, 1, 2)) == 3
    with trainer_database.connect() as connection:
        rows = load_preferences(connection)
        assert load_offset(connection, "t", 0) == 3
        assert load_offsets(connection, "t") == {0: 3}
    assert [row.event_id for row in rows] == ["event-0", "event-1", "event-2"]
    assert rows[0].choice == make_choice(make_comparison("cmp-0"))
    assert (rows[0].user, rows[0].preferred, rows[0].used_as_new, rows[0].used_as_replay) == ("user-1", "first", 0, 0)


def test_repeats_are_skipped(trainer_database: sa.Engine) -> None:
    take(trainer_database, *make_records(0, 1))
    assert take(trainer_database, *make_records(0, 1, 2)) == 1
    again = make_record(3, make_choice(make_comparison("cmp-2")), event_id="event-2")  # the relay's repeat
    assert take(trainer_database, again) == 0
    with trainer_database.connect() as connection:
        assert count_preferences(connection) == 3
        assert load_offset(connection, "t", 0) == 4


def test_batch_above_the_offset_is_refused_whole(trainer_database: sa.Engine) -> None:
    take(trainer_database, *make_records(0))
    with pytest.raises(PositionMismatch) as caught:
        take(trainer_database, *make_records(2, 3))
    assert caught.value.next_offset == 1
    with trainer_database.connect() as connection:
        assert count_preferences(connection) == 1
        assert load_offset(connection, "t", 0) == 1


def test_hole_in_the_offsets_is_passed_when_the_log_was_asked_for_it(trainer_database: sa.Engine) -> None:
    assert take(trainer_database, *make_records(2, 4), read_from=0) == 2
    with trainer_database.connect() as connection:
        assert load_offset(connection, "t", 0) == 5


def test_crash_before_the_commit_changes_nothing(trainer_database: sa.Engine) -> None:
    with pytest.raises(KeyError), write_transaction(trainer_database) as connection:
        consume(connection, make_records(0, 1))
        raise KeyError
    with trainer_database.connect() as connection:
        assert (count_preferences(connection), load_offset(connection, "t", 0)) == (0, 0)


def test_unreadable_records_are_buried_and_passed(trainer_database: sa.Engine) -> None:
    [good] = make_records(0)
    poison = Record(key=b"k", value=b"{", headers=good.headers, topic="t", partition=0, offset=1, timestamp_ms=0)
    future = Record(
        key=b"k",
        value=b"{}",
        headers={**good.headers, "ce_type": b"prefloop.choice.v9"},
        topic="t",
        partition=0,
        offset=2,
        timestamp_ms=0,
    )
    assert take(trainer_database, good, poison, future) == 1
    with trainer_database.connect() as connection:
        assert load_offset(connection, "t", 0) == 3
        assert count_dead_letters(connection) == 2
        found = connection.execute(sa.select(dead_letters).order_by(dead_letters.c.record_offset)).all()
    assert [(row.record_offset, row.error, row.value) for row in found] == [
        (1, "PoisonEvent", b"{"),
        (2, "FutureVersion", b"{}"),
    ]


def test_signals_are_stored_once_beside_the_preferences(trainer_database: sa.Engine) -> None:
    said = make_signal("chatcmpl-7")
    bare = make_signal("chatcmpl-8", messages=None, answer=None, user="")
    records = [make_record(0, make_choice()), make_record(1, said), make_record(2, bare)]
    assert take(trainer_database, *records) == 1  # only preferences are counted as new
    assert take(trainer_database, make_record(3, said, event_id="event-1")) == 0  # the relay's repeat
    with trainer_database.connect() as connection:
        assert load_offset(connection, "t", 0) == 4
        assert (count_preferences(connection), count_signals(connection), count_dead_letters(connection)) == (1, 2, 0)
        stored = load_signals(connection)
        rows = connection.execute(sa.select(signals).order_by(signals.c.id)).all()
        assert load_signals(connection, after_id=stored[0][0], limit=1) == stored[1:]
    assert [signal for _, signal in stored] == [said, bare]
    assert [(row.event_id, row.completion_id, row.checkpoint, row.kind) for row in rows] == [
        ("event-1", "chatcmpl-7", "c-000000-aaaaaaaaaaaa", "said"),
        ("event-2", "chatcmpl-8", "c-000000-aaaaaaaaaaaa", "said"),
    ]
    assert [row.prompt_key for row in rows] == [key_prompt(said.messages or []), ""]
    assert [(row.split, row.cluster) for row in rows] == [(UNDECIDED, None)] * 2  # the trainer's to decide


def test_signal_and_offset_move_together(trainer_database: sa.Engine) -> None:
    with pytest.raises(KeyError), write_transaction(trainer_database) as connection:
        consume(connection, [make_record(0, make_signal())])
        raise KeyError
    with trainer_database.connect() as connection:
        assert (count_signals(connection), load_offset(connection, "t", 0)) == (0, 0)


def test_partitions_have_offsets_of_their_own(trainer_database: sa.Engine) -> None:
    one = make_record(0, make_choice(make_comparison("a")), event_id="a", partition=1)
    two = make_record(0, make_choice(make_comparison("b")), event_id="b", partition=2)
    assert take(trainer_database, one, two) == 2
    with trainer_database.connect() as connection:
        assert load_offsets(connection, "t") == {1: 1, 2: 1}


def test_gap_is_recorded_and_reading_goes_on_behind_it(trainer_database: sa.Engine) -> None:
    take(trainer_database, *make_records(0))
    with write_transaction(trainer_database) as connection:
        assert record_gap(connection, "t", 0, 10) == 9
        assert record_gap(connection, "t", 0, 10) == 0
        [gap] = connection.execute(sa.select(gaps)).all()
    assert (gap.from_offset, gap.to_offset) == (1, 10)
    assert take(trainer_database, *make_records(10)) == 1


def test_uses_are_counted_by_kind(trainer_database: sa.Engine) -> None:
    take(trainer_database, *make_records(0, 1))
    with write_transaction(trainer_database) as connection:
        mark_used(connection, [1], as_new=True)
        mark_used(connection, [1, 2], as_new=False)
        mark_used(connection, [2], as_new=False)
        rows = load_preferences(connection)
    assert [(row.used_as_new, row.used_as_replay) for row in rows] == [(1, 1), (0, 2)]


def test_new_rows_are_placed_once_in_their_order_and_with_them(trainer_database: sa.Engine) -> None:
    seen: list[Arrival] = []

    def place(connection: sa.Connection, arrivals: Sequence[Arrival]) -> list[Placement]:
        seen.extend(arrivals)
        return [Placement(7 + len(seen) - len(arrivals) + i, "heldout") for i in range(len(arrivals))]

    demonstration = Demonstration(
        id="dem_1", messages=[{"role": "user", "content": "Hi"}], answer="Ho.", channel="api", created_at=1.0
    )
    records = [
        make_record(0, make_choice(make_comparison("cmp-0", conversation="c"))),
        make_record(1, make_signal()),
        make_record(2, demonstration),
        make_record(3, make_choice(make_comparison("cmp-0")), event_id="event-0"),  # the relay's repeat
    ]
    with write_transaction(trainer_database) as connection:
        assert consume(connection, records, place=place) == 1
        assert consume(connection, [make_record(4, make_signal(), event_id="event-1")], place=place) == 0
    with trainer_database.connect() as connection:
        [row] = load_preferences(connection)
        [signal] = connection.execute(sa.select(signals)).all()
        [shown] = connection.execute(sa.select(demonstrations)).all()
    assert (row.cluster, row.split) == (7, "heldout")
    assert (signal.cluster, signal.split) == (8, "heldout")
    assert (shown.cluster, shown.split, shown.event_id, shown.channel) == (9, "heldout", "event-2", "api")
    assert [each.is_choice for each in seen] == [True, False, False]
    assert (seen[0].conversation, seen[2].messages) == ("c", demonstration.messages)


def test_prompt_key_ignores_the_order_of_fields() -> None:
    one = key_prompt([{"role": "user", "content": "hi"}])
    assert one == key_prompt([{"content": "hi", "role": "user"}])
    assert one != key_prompt([{"role": "user", "content": "ho"}])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 6), st.booleans()), max_size=12))
def test_any_walk_of_reads_and_crashes_stores_each_choice_once(
    tmp_path_factory: pytest.TempPathFactory, walk: list[tuple[int, int, bool]]
) -> None:
    """Each step reads some records from some offset, and may crash before the commit."""
    log = make_records(*range(12))
    database = open_database(f"sqlite:{tmp_path_factory.mktemp('walk') / 'trainer.db'}")
    create_tables(database, metadata)
    reached = 0
    for start, num, crashes in walk:
        batch = log[start : start + num]
        try:
            with write_transaction(database) as connection:
                consume(connection, batch)
                if crashes:
                    raise KeyError
            if batch:
                reached = max(reached, start + len(batch))
        except (KeyError, PositionMismatch):
            pass
    with database.connect() as connection:
        assert [row.event_id for row in load_preferences(connection)] == [f"event-{i}" for i in range(reached)]
        assert load_offset(connection, "t", 0) == reached
    database.dispose()

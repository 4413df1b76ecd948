from __future__ import annotations

import pytest
import sqlalchemy as sa

from feedback.choices import count_outbox, outbox
from feedback.database import write_transaction
from feedback.errors import ConflictingSignal
from feedback.events import decode_event
from feedback.outbox import load_rows
from feedback.signals import StoredSignal, find_signal, fingerprint_signal, record_signal, signals
from tests.feedback.reading import count_signals
from tests.feedback.samples import make_signal


def say(
    database: sa.Engine,
    completion_id: str = "chatcmpl-1",
    *,
    key: str | None = None,
    app: str = "app-1",
    said: str = "up",
) -> StoredSignal:
    with write_transaction(database) as connection:
        return record_signal(
            connection,
            make_signal(completion_id, app=app, thumb=said),
            fingerprint=fingerprint_signal(completion_id, said),
            idempotency_key=key,
        )


def counts(database: sa.Engine) -> tuple[int, int]:
    """(signals, outbox rows)."""
    with database.connect() as connection:
        return count_signals(connection), count_outbox(connection)


def test_signal_and_outbox_row_are_stored_together(database: sa.Engine) -> None:
    stored = say(database)
    assert (stored.status, stored.completion_id, stored.created_at) == ("created", "chatcmpl-1", 1002.5)
    with database.connect() as connection:
        [row] = load_rows(connection, outbox, 10)
        [kept] = connection.execute(sa.select(signals)).all()
    event = decode_event(row.record.headers, row.record.value)
    assert (row.record.key, event.type, event.id) == (b"chatcmpl-1", "prefloop.signal.v1", stored.id)
    assert event.data == make_signal()
    assert (kept.id, kept.checkpoint, kept.thumb, kept.rating, kept.scale, kept.success, kept.score) == (
        stored.id,
        "c-000000-aaaaaaaaaaaa",
        "up",
        4.0,
        5,
        True,
        0.5,
    )


def test_nothing_stays_when_the_transaction_fails(database: sa.Engine) -> None:
    with pytest.raises(KeyError), write_transaction(database) as connection:
        record_signal(connection, make_signal(), fingerprint="f")
        raise KeyError
    assert counts(database) == (0, 0)


def test_same_key_and_signal_replay_the_first(database: sa.Engine) -> None:
    first = say(database, key="k")
    again = say(database, key="k")
    assert (first.status, again.status, again.id) == ("created", "replayed", first.id)
    assert counts(database) == (1, 1)


def test_another_signal_under_the_same_key_conflicts_and_stores_nothing(database: sa.Engine) -> None:
    say(database, key="k")
    with pytest.raises(ConflictingSignal):
        say(database, key="k", said="down")
    with pytest.raises(ConflictingSignal):
        say(database, "chatcmpl-2", key="k")
    assert counts(database) == (1, 1)


def test_keys_are_each_apps_own_and_signals_without_one_never_collide(database: sa.Engine) -> None:
    ids = {say(database, key="k").id, say(database, key="k", app="app-2").id, say(database).id, say(database).id}
    assert len(ids) == 4
    with database.connect() as connection:
        assert find_signal(connection, "app-3", "k", "f") is None


def test_fingerprints_tell_what_was_said_from_how_it_was_written() -> None:
    one = fingerprint_signal("c", {"a": 1, "b": [1.5]})
    assert one == fingerprint_signal("c", {"b": [1.5], "a": 1})
    others = {fingerprint_signal("d", {"a": 1, "b": [1.5]}), fingerprint_signal("c", {"a": 1, "b": [1.25]})}
    assert one not in others and len(others) == 2

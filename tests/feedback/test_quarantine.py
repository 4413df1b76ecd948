"""Preferences in quarantine, over both databases."""

from __future__ import annotations

import sqlalchemy as sa

from feedback import inbox, quarantine
from feedback.database import write_transaction
from feedback.outages import describe_error
from tests.feedback.samples import make_choice, make_comparison, make_record


def fill(database: sa.Engine) -> None:
    with write_transaction(database) as connection:
        inbox.consume(connection, [make_record(n, make_choice(make_comparison(f"cmp-{n}"))) for n in range(3)])


def test_the_first_error_stands_and_the_preference_stays(trainer_database: sa.Engine) -> None:
    fill(trainer_database)
    with write_transaction(trainer_database) as connection:
        assert quarantine.add(connection, "event-1", "reward", "first", 1.0)
        assert not quarantine.add(connection, "event-1", "round", "second", 2.0)
    with trainer_database.connect() as connection:
        [found] = quarantine.load(connection)
        assert (found.event_id, found.comparison_id, found.part, found.error) == ("event-1", "cmp-1", "reward", "first")
        assert quarantine.count(connection) == 1
        assert inbox.count_preferences(connection) == 3


def test_release_takes_those_named_or_all(trainer_database: sa.Engine) -> None:
    fill(trainer_database)
    with write_transaction(trainer_database) as connection:
        for number in range(3):
            quarantine.add(connection, f"event-{number}", "reward", "e", 1.0)
        assert quarantine.release(connection, ["event-1", "event-9"]) == 1
        assert [each.event_id for each in quarantine.load(connection)] == ["event-0", "event-2"]
        assert quarantine.release(connection) == 2
        assert quarantine.count(connection) == 0


def test_any_error_can_be_stored(trainer_database: sa.Engine) -> None:
    fill(trainer_database)
    error = describe_error(ValueError("NUL \0, surrogate \ud800, " + "long " * 1000))
    assert error.startswith("ValueError: NUL \\0, surrogate \\ud800, long") and len(error) == 1000
    with write_transaction(trainer_database) as connection:
        quarantine.add(connection, "event-0", "reward", error, 1.0)
        assert quarantine.load(connection)[0].error == error

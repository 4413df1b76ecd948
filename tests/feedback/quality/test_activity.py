"""What was said lately: counts worked out by hand, and rows of the tables."""

from pathlib import Path

import pytest

from feedback.choices import store_comparison
from feedback.database import create_tables, metadata, open_database, write_transaction
from feedback.quality.activity import DAY_S, DayCount, Said, UserShare, count_days, load_said, summarise_activity
from tests.feedback.reading import record_choice
from tests.feedback.samples import make_comparison


def say(user: str, preferred: str = "first", seconds: float = 2.0, *, harmful: bool = False) -> Said:
    return Said(user, "shop", "explore", preferred, harmful, 1000.0, 1000.0 + seconds)


def test_a_skip_is_a_choice_and_no_time_to_decide() -> None:
    said = [say("ann", seconds=2), say("bob", "tie", 4), say("ann", "skip", 900, harmful=True)]
    seen = summarise_activity(said)
    assert (seen.choices, seen.users, seen.harmful, seen.median_seconds) == (3, 2, 1, 3.0)
    assert seen.by_verdict == {"first": 1, "tie": 1, "skip": 1}
    assert (seen.since, seen.by_asked, seen.by_app) == (1002.0, {"explore": 3}, {"shop": 3})


def test_those_who_choose_most_come_first_and_unknown_ones_are_one_row_that_is_no_user() -> None:
    said = [say("b" * 40)] * 3 + [say("")] * 4 + [say("a" * 40)] * 3
    seen = summarise_activity(said)
    assert seen.users == 2
    assert seen.top_users == [
        UserShare("", 4, 0.4), UserShare("a" * 12, 3, 0.3), UserShare("b" * 12, 3, 0.3),
    ]  # fmt: skip
    assert len(summarise_activity([say(f"user {n}") for n in range(30)]).top_users) == 10


def test_without_a_choice_there_is_nothing_to_say() -> None:
    seen = summarise_activity([])
    assert (seen.choices, seen.since, seen.median_seconds, seen.top_users) == (0, None, None, [])


def test_the_newest_choices_of_a_policy_are_read_and_days_are_counted(tmp_path: Path) -> None:
    engine = open_database(f"sqlite:{tmp_path / 'choices.db'}")
    create_tables(engine, metadata)
    today = 20_000 * DAY_S
    with write_transaction(engine) as conn:
        for n, (policy, at) in enumerate((("default", -DAY_S), ("default", -10), ("default", 10), ("other", 20))):
            shown = make_comparison(f"cmp-{n}", policy=policy, created_at=today + at, expires_at=today + at + 9)
            store_comparison(conn, shown)
            if n != 2:
                record_choice(conn, shown.id, "tie", None, False, "t", today + at + 5)
        assert [each.chosen_at for each in load_said(conn, "default", 9)] == [today - 5, today - DAY_S + 5]
        assert len(load_said(conn, "default", 1)) == 1
        assert count_days(conn, "default", today + 3600.0, 2) == [
            DayCount(today - DAY_S, 2, 2),
            DayCount(today, 1, 0),
        ]


@pytest.mark.parametrize("num_days", [1, 14])
def test_days_without_anything_are_there_too(tmp_path: Path, num_days: int) -> None:
    engine = open_database(f"sqlite:{tmp_path / 'choices.db'}")
    create_tables(engine, metadata)
    with engine.connect() as conn:
        days = count_days(conn, "default", 20_000 * DAY_S + 5.0, num_days)
    assert [(day.comparisons, day.choices) for day in days] == [(0, 0)] * num_days
    assert days[-1].starts_at == 20_000 * DAY_S

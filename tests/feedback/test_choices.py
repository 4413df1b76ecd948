from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback.choices import (
    NewChoice,
    StoredChoice,
    choices,
    comparisons,
    count_outbox,
    outbox,
    record_choices,
    store_comparison,
)
from feedback.database import create_tables, open_database, write_transaction
from feedback.duels import FailedDuel, load_duels, store_failed_duels
from feedback.errors import ConflictingChoice, ExpiredComparison, UnknownComparison
from feedback.events import Comparison, Preferred, decode_event
from feedback.outbox import delete_rows, load_rows
from prefloop.servers.postgres import Postgres
from tests.databases import make_url
from tests.feedback.reading import record_choice
from tests.feedback.samples import make_comparison


def show(database: sa.Engine, *shown: Comparison) -> None:
    with write_transaction(database) as connection:
        for comparison in shown:
            store_comparison(connection, comparison)


def choose(
    database: sa.Engine,
    comparison_id: str = "cmp-1",
    preferred: Preferred = "first",
    *,
    strength: float | None = None,
    harmful: bool = False,
    now: float = 1002.5,
) -> StoredChoice:
    with write_transaction(database) as connection:
        return record_choice(connection, comparison_id, preferred, strength, harmful, "api", now)


def test_choice_and_outbox_row_are_stored_together(database: sa.Engine) -> None:
    show(database, make_comparison())
    stored = choose(database, strength=0.5)
    assert stored.status == "created"
    assert stored.choice.seconds_to_decide == 2.5
    with database.connect() as connection:
        [row] = load_rows(connection, outbox, 10)
        assert count_rows(connection) == (1, 1)
    event = decode_event(row.record.headers, row.record.value)
    assert row.record.key == b"cmp-1"
    assert event.type == "prefloop.choice.v1"
    assert event.data == stored.choice
    assert stored.choice.comparison == make_comparison()


def test_nothing_stays_when_the_transaction_fails(database: sa.Engine) -> None:
    show(database, make_comparison())
    with pytest.raises(KeyError), write_transaction(database) as connection:
        record_choice(connection, "cmp-1", "first", None, False, "api", 1002.5)
        raise KeyError
    with database.connect() as connection:
        assert count_rows(connection) == (1, 0)
        assert count_outbox(connection) == 0


def test_same_choice_again_replays_the_first_even_after_expiry(database: sa.Engine) -> None:
    show(database, make_comparison())
    first = choose(database, now=1002.5)
    again = choose(database, now=9999.0)
    assert again.status == "replayed"
    assert again.choice == first.choice
    with database.connect() as connection:
        assert count_outbox(connection) == 1


@pytest.mark.parametrize("change", [{"preferred": "tie"}, {"strength": 0.2}, {"harmful": True}])
def test_another_choice_conflicts(database: sa.Engine, change: dict[str, object]) -> None:
    show(database, make_comparison())
    choose(database)
    with pytest.raises(ConflictingChoice):
        choose(database, **change)  # type: ignore[arg-type]


def test_unknown_comparison_is_refused(database: sa.Engine) -> None:
    with pytest.raises(UnknownComparison):
        choose(database, "cmp-nobody-saw")


def test_choice_counts_until_the_moment_of_expiry(database: sa.Engine) -> None:
    show(database, make_comparison("in-time"), make_comparison("late"))
    assert choose(database, "in-time", now=4600.0).status == "created"
    with pytest.raises(ExpiredComparison):
        choose(database, "late", now=4600.001)


@pytest.mark.parametrize(("preferred", "strength"), [("both", None), ("first", float("nan")), ("first", float("inf"))])
def test_senseless_values_are_the_callers_mistake(
    database: sa.Engine, preferred: Preferred, strength: float | None
) -> None:
    show(database, make_comparison())
    with pytest.raises(ValueError):
        choose(database, preferred=preferred, strength=strength)


def test_clock_that_stepped_back_gives_no_negative_time(database: sa.Engine) -> None:
    show(database, make_comparison())
    assert choose(database, now=900.0).choice.seconds_to_decide == 0.0


def say(comparison_id: str, preferred: Preferred = "first", at: float = 1002.5) -> NewChoice:
    return NewChoice(
        comparison_id=comparison_id, preferred=preferred, strength=None, harmful=False, channel="api", at=at
    )


def test_many_choices_at_once_are_answered_one_by_one(database: sa.Engine) -> None:
    show(database, *(make_comparison(f"cmp-{i}") for i in range(5)))
    choose(database, "cmp-0")
    said = [
        say("cmp-1"), say("cmp-0"), say("cmp-0", "tie"), say("nobody-saw"), say("cmp-2", at=4600.001),
        say("cmp-3", "tie"), say("cmp-1"), say("cmp-3", "first"), say("cmp-4", at=4600.0), say("cmp-4", at=4600.001),
    ]  # fmt: skip
    with write_transaction(database) as connection:
        results = record_choices(connection, said)
    kinds = [each.status if isinstance(each, StoredChoice) else type(each) for each in results]
    assert kinds == [
        "created", "replayed", ConflictingChoice, UnknownComparison, ExpiredComparison,
        "created", "replayed", ConflictingChoice, "created", "replayed",
    ]  # fmt: skip
    with database.connect() as connection:
        rows = load_rows(connection, outbox, 10)
        assert [row.record.key for row in rows] == [b"cmp-0", b"cmp-1", b"cmp-3", b"cmp-4"]
        assert count_rows(connection) == (5, 4)
    events = [decode_event(row.record.headers, row.record.value) for row in rows]
    assert len({event.id for event in events}) == 4
    assert events[1].data == results[0].choice == results[6].choice  # type: ignore[union-attr]


def test_a_choice_of_a_process_that_was_faster_stands(postgres: Postgres, tmp_path: Path) -> None:
    """Two processes choose at the same moment: the second insert finds the first one's row, which it could not read."""
    database = open_database(make_url("postgresql", tmp_path, postgres))  # one process writes a SQLite file
    create_tables(database, comparisons.metadata)
    show(database, make_comparison("cmp-1"), make_comparison("cmp-2"), make_comparison("cmp-3"))
    with write_transaction(database) as slow:
        sa.event.listen(database, "before_cursor_execute", once(lambda: [choose(database, f"cmp-{i}") for i in (1, 2)]))
        results = record_choices(slow, [say("cmp-1"), say("cmp-2", "tie"), say("cmp-3")])
    kinds = [each.status if isinstance(each, StoredChoice) else type(each) for each in results]
    assert kinds == ["replayed", ConflictingChoice, "created"]
    with database.connect() as connection:
        assert count_outbox(connection) == 3
    database.dispose()


def count_rows(connection: sa.Connection) -> tuple[int, int]:
    """(comparisons, choices)."""
    num_comparisons, num_choices = (
        connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
        for table in (comparisons, choices)
    )
    return num_comparisons, num_choices


def once(act: Callable[[], object]) -> Callable[..., None]:
    """Act before the first INSERT into choices."""
    state = {"done": False}

    def before(conn: object, cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("INSERT INTO choices") and not state["done"]:
            state["done"] = True
            act()

    return before


def test_storing_a_comparison_again_changes_nothing(database: sa.Engine) -> None:
    show(database, make_comparison(), make_comparison(app="another"))
    assert choose(database).choice.comparison.app == "app-1"


def test_outbox_gives_the_oldest_first_and_forgets_what_is_deleted(database: sa.Engine) -> None:
    show(database, *(make_comparison(f"cmp-{i}") for i in range(3)))
    for i in (2, 0, 1):
        choose(database, f"cmp-{i}")
    with write_transaction(database) as connection:
        rows = load_rows(connection, outbox, 2)
        assert [row.record.key for row in rows] == [b"cmp-2", b"cmp-0"]
        delete_rows(connection, outbox, [row.id for row in rows])
        assert [row.record.key for row in load_rows(connection, outbox, 2)] == [b"cmp-1"]


def test_duels_are_seen_from_the_canarys_side_user_by_user_in_the_order_asked(database: sa.Engine) -> None:
    verdicts: list[tuple[str, Preferred, int]] = [
        ("canary stable", "first", 1),
        ("canary stable", "second", -1),
        ("stable canary", "first", -1),
        ("stable canary", "second", 1),
        ("canary stable", "tie", 0),
        ("stable canary", "both_bad", 0),
    ]
    for number, (arms, preferred, _) in reversed(list(enumerate(verdicts))):
        show(database, make_comparison(f"d{number}", arms=arms, rollout="r1", created_at=1000.0 + number))
        choose(database, f"d{number}", preferred, now=1010.0)
    with database.connect() as connection:
        duels = list(load_duels(connection, ["r1"]))
    assert [duel.outcome for duel in duels] == [outcome for _, _, outcome in verdicts]
    assert [duel.canary_first for duel in duels] == [arms == "canary stable" for arms, _, _ in verdicts]
    assert [duel.both_bad for duel in duels] == [False] * 5 + [True]
    assert [duel.asked_at for duel in duels] == [1000.0 + number for number in range(6)]
    assert {duel.chosen_at for duel in duels} == {1010.0}


def test_open_and_skipped_duels_are_not_decided(database: sa.Engine) -> None:
    show(database, make_comparison("open", arms="stable canary", rollout="r1"))
    show(database, make_comparison("skipped", arms="stable canary", rollout="r1"))
    choose(database, "skipped", "skip")
    with database.connect() as connection:
        assert [(duel.chosen_at, duel.outcome) for duel in load_duels(connection, ["r1"])] == [(None, 0)] * 2


def test_explores_and_other_rollouts_are_no_duels(database: sa.Engine) -> None:
    show(database, make_comparison("explore", rollout="r1"), make_comparison("d", arms="stable canary", rollout="r2"))
    with database.connect() as connection:
        assert list(load_duels(connection, ["r1"])) == []


def test_duels_with_a_failed_candidate_stand_among_those_that_were_shown(database: sa.Engine) -> None:
    show(database, make_comparison("shown", arms="canary stable", rollout="r1", created_at=1001.0))
    user = make_comparison().user
    failed = [
        FailedDuel("f1", "r1", user, 1000.0, -1),
        FailedDuel("f2", "r1", user, 1002.0, 0),
        FailedDuel("f3", "r2", user, 1003.0, 1),
    ]
    with write_transaction(database) as connection:
        for _ in range(2):
            store_failed_duels(connection, failed)
    with database.connect() as connection:
        duels = list(load_duels(connection, ["r1"]))
    assert [(duel.comparison_id, duel.chosen_at, duel.outcome, duel.failed) for duel in duels] == [
        ("f1", 1000.0, -1, True), ("shown", None, 0, False), ("f2", 1002.0, 0, True),
    ]  # fmt: skip
    assert not any(duel.harmful or duel.both_bad for duel in duels)

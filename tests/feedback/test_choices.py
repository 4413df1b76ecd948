from __future__ import annotations

import pytest
import sqlalchemy as sa

from feedback.choices import (
    StoredChoice,
    count_feedback,
    count_outbox,
    delete_outbox,
    load_duels,
    pending_outbox,
    record_choice,
    store_comparison,
)
from feedback.database import write_transaction
from feedback.errors import ConflictingChoice, ExpiredComparison, UnknownComparison
from feedback.events import Comparison, Preferred, decode_event
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
        [row] = pending_outbox(connection, 10)
        assert count_feedback(connection) == (1, 1)
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
        assert count_feedback(connection) == (1, 0)
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


def test_storing_a_comparison_again_changes_nothing(database: sa.Engine) -> None:
    show(database, make_comparison(), make_comparison(app="another"))
    assert choose(database).choice.comparison.app == "app-1"


def test_outbox_gives_the_oldest_first_and_forgets_what_is_deleted(database: sa.Engine) -> None:
    show(database, *(make_comparison(f"cmp-{i}") for i in range(3)))
    for i in (2, 0, 1):
        choose(database, f"cmp-{i}")
    with write_transaction(database) as connection:
        rows = pending_outbox(connection, 2)
        assert [row.record.key for row in rows] == [b"cmp-2", b"cmp-0"]
        delete_outbox(connection, [row.id for row in rows])
        assert [row.record.key for row in pending_outbox(connection, 2)] == [b"cmp-1"]


def test_duels_are_seen_from_the_canarys_side_in_the_order_asked(database: sa.Engine) -> None:
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
        duels = load_duels(connection, "r1")
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
        assert [(duel.chosen_at, duel.outcome) for duel in load_duels(connection, "r1")] == [(None, 0)] * 2


def test_explores_and_other_rollouts_are_no_duels(database: sa.Engine) -> None:
    show(database, make_comparison("explore", rollout="r1"), make_comparison("d", arms="stable canary", rollout="r2"))
    with database.connect() as connection:
        assert load_duels(connection, "r1") == []

"""What the learner is given of the inbox: of its policy, of the right split, in order, and nothing that was set aside."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from feedback import inbox, quarantine
from feedback.events import Demonstration
from feedback.inbox import mark_used, preferences, signals
from tests.feedback.samples import make_record, make_signal
from tests.trainer.run.arrivals import choose, send
from trainer.run.rounds import NewPreferences
from trainer.run.rows import rows, signal_queries

SPLITS = ("train", "train", "train", "heldout", "auditor")


@pytest.fixture
def filled(connection: sa.Connection) -> sa.Connection:
    """Rows 1 to 20 by SPLITS in turns; 2 is a tie, 3 a skip, 6 in quarantine, 7 of another policy."""
    kinds = {2: "tie", 3: "skip"}
    for number in range(1, 21):
        policy = "other" if number == 7 else "default"
        send(connection, choose(number, kinds.get(number, "first"), split=SPLITS[number % 5], policy=policy))
    quarantine.add(connection, "event-5", "dpo", "it failed", 1.0)
    return connection


def ids(pairs: list[Any]) -> list[int]:
    return [pair.row_id for pair in pairs]


def test_new_training_pairs_come_in_their_order(filled: sa.Connection) -> None:
    assert ids(rows.load_unused(filled, "default", 3)) == [1, 2, 5]
    assert rows.list_unused(filled, "default") == [1, 2, 5, 10, 11, 12, 15, 16, 17, 20]
    assert rows.count_unused(filled, "default") == 10
    assert ids(rows.load_unused(filled, "other", 9)) == [7]
    mark_used(filled, [1, 2], as_new=True)
    mark_used(filled, [2], as_new=False)
    assert ids(rows.load_unused(filled, "default", 2)) == [5, 10]
    assert rows.list_replayable(filled, "default", 1) == [1]
    assert rows.list_replayable(filled, "default", 2) == [1, 2]
    rows.forget_uses_of(filled, [1], [2])
    assert (rows.list_replayable(filled, "default", 1), rows.count_unused(filled, "default")) == ([2], 9)
    rows.forget_uses(filled, "default")
    assert rows.count_unused(filled, "default") == 10


def test_what_came_since_a_round_is_counted_whatever_its_split(filled: sa.Connection) -> None:
    assert rows.count_after(filled, "default", 0) == NewPreferences(17, 16, 20)
    assert rows.count_after(filled, "default", 18) == NewPreferences(2, 2, 20)
    assert rows.count_after(filled, "nobody's", 4) == NewPreferences(0, 0, 4)
    assert rows.find_trigger_time(filled, "default", 0, 3) == 1002.5
    assert rows.find_trigger_time(filled, "nobody's", 0, 3) == 0.0


def test_pairs_are_loaded_by_id(filled: sa.Connection) -> None:
    assert ids(rows.load_ids(filled, "default", [12, 2, 3, 6, 7, 9])) == [2, 9, 12]


def test_the_held_out_and_the_auditors_are_told_apart(filled: sa.Connection) -> None:
    assert ids(rows.load_held_out(filled, "default")) == [8, 13, 18]
    assert ids(rows.load_auditor(filled, "default")) == [4, 9, 14, 19]
    sample = ids(rows.load_auditor(filled, "default", 2))
    assert len(sample) == 2 and sample == sorted(sample)
    assert sample == ids(rows.load_auditor(filled, "default", 2))


def test_the_newest_pairs_are_those_of_every_split(filled: sa.Connection) -> None:
    assert ids(rows.load_newest(filled, "default", 4)) == [17, 18, 19, 20]
    assert ids(rows.load_newest(filled, "default", 100)) == [1, 2, 4, 5, *range(8, 21)]


def test_a_fixed_sample_changes_little_as_rows_come() -> None:
    names = [f"event-{number}" for number in range(1100)]
    before, after = set(rows.choose_fixed(names[:1000], 200)), set(rows.choose_fixed(names, 200))
    assert len(before) == len(after) == 200
    assert len(before & after) >= 160  # about a tenth of the rows is new, and so of the sample
    assert rows.choose_fixed(names[:3], 200) == names[:3]


def test_a_row_that_has_no_split_yet_is_nowhere(connection: sa.Connection) -> None:
    inbox.consume(connection, [make_record(0, choose(0))])
    assert rows.load_unused(connection, "default", 9) == rows.load_held_out(connection, "default") == []


def test_every_choice_is_counted_once_by_what_became_of_it(filled: sa.Connection) -> None:
    mark_used(filled, [1], as_new=True)
    totals = rows.count_totals(filled, "default")
    assert totals.uses == {"trained": 1, "waiting": 9, "skip": 1, "heldout": 3, "auditor": 4, "quarantined": 1}
    assert (totals.usable, totals.decisive) == (18, 17)


def test_a_row_that_cannot_be_read_is_rejected(filled: sa.Connection) -> None:
    filled.execute(sa.update(preferences).where(preferences.c.id == 5).values(choice_json=b"{"))
    rejected: list[tuple[str, str]] = []
    loaded = rows.load_unused(filled, "default", 3, lambda event_id, part, error: rejected.append((event_id, part)))
    assert (ids(loaded), rejected) == ([1, 2], [("event-4", "load")])


def test_signals_and_demonstrations_are_read_as_rows(connection: sa.Connection) -> None:
    shown = Demonstration(
        id="d",
        messages=[{"role": "user", "content": "Hi"}],
        answer="Ho.",
        channel="api",
        created_at=1.0,
        policy="default",
    )
    send(
        connection,
        make_signal(conversation="train"),
        make_signal("bare", messages=None, answer=None, conversation="train"),
        make_signal("held", conversation="heldout"),
        make_signal("plain", conversation="train", edited_text=None, rating=None, outcome=None, thumb="down"),
        shown,
        make_signal("other", conversation="train", policy="other"),
        make_signal("aside", conversation="train"),
    )
    quarantine.add(connection, "event-6", "sft", "it failed", 1.0)
    assert [(each.row_id, each.kind, each.value) for each in signal_queries.load_rated(connection, "default")] == [
        (1, "thumb", 1.0), (1, "rating", 0.75), (1, "outcome", 1.0), (4, "thumb", 0.0)
    ]  # fmt: skip
    assert ids(signal_queries.load_rated(connection, "default", after_id=1)) == [4]
    assert {each.row_id for each in signal_queries.load_rated(connection, "default", split="heldout")} == {3}
    assert signal_queries.find_last_signal(connection) == 6
    assert {each.row_id for each in signal_queries.load_rated(connection, "default", until_id=3)} == {1}
    assert [signal_queries.find_end(connection, "default", 0, limit) for limit in (1, 2, 3, 4)] == [1, 2, 4, 6]
    assert signal_queries.count_said(connection, "default", 0) == 3
    connection.execute(sa.update(signals).where(signals.c.id == 4).values(cluster=None, split=""))
    assert signal_queries.find_end(connection, "default", 0, 3) == 3
    [pair] = signal_queries.load_edit_pairs(connection, "default", 0.5)
    assert (pair.row_id, pair.weight) == (1, 0.5)
    ideal = signal_queries.load_demonstrations(connection, "default")
    assert [(each.event_id, each.source, each.answer.text) for each in ideal] == [
        ("event-4", "api", "Ho."), ("event-0", "edit", "Willemstad!")
    ]  # fmt: skip
    some = signal_queries.load_demonstrations(connection, "default", event_ids=["event-0", "event-3"])
    assert [each.event_id for each in some] == ["event-0"]
    assert [(each.event_id, each.app, each.preference_id) for each in quarantine.load(connection)] == [
        ("event-6", "app-1", 0)
    ]

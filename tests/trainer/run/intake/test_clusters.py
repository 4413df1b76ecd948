"""A prompt that judges is never learnt from, whoever asks it, in whatever words, and whenever it comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.database import create_tables, open_database, write_transaction
from feedback.inbox import Arrival, Placement, preferences, prompt_bands, prompt_clusters
from tests.feedback.samples import make_choice, make_comparison, make_record
from trainer.math import splits
from trainer.run.intake import clusters
from trainer.run.intake.clusters import place_rows, place_undecided

WORDS = "amber birch cedar delta ember frost grove haven inlet jetty knoll larch maple north ocean pearl quill river"
NAMES = WORDS.split()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(f"sqlite:{tmp_path / 'trainer.db'}")
    create_tables(engine, inbox.metadata)
    yield engine
    engine.dispose()


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held out from the first choice on."""
    monkeypatch.setattr(splits, "MIN_CHOICES", 0)


def say(number: int) -> str:
    """A question of 14 words that has little in common with that of any other number."""
    return " ".join(
        NAMES[(number * (7 + i) + i * i * (1 + number // 18)) % 18] + str(number % (5 + i)) for i in range(14)
    )


def arrive(
    text: str, *, conversation: str = "", split: str = "", is_choice: bool = True, may_judge: bool = True
) -> Arrival:
    messages = [{"role": "user", "content": text}]
    return Arrival(inbox.key_prompt(messages), messages, conversation, is_choice, split, may_judge)


def place(database: sa.Engine, *arrivals: Arrival) -> list[Placement]:
    with write_transaction(database) as connection:
        return place_rows(connection, arrivals)


def find(database: sa.Engine, split: str) -> tuple[str, Placement]:
    """A question that falls into this split, placed."""
    for number in range(500):
        [placement] = place(database, arrive(say(number)))
        if placement.split == split:
            return say(number), placement
    raise AssertionError(f"no {split}")


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("split", ["heldout", "auditor"])
def test_the_same_question_and_its_near_duplicate_judge_too(database: sa.Engine, split: str) -> None:
    text, placement = find(database, split)
    same, louder, longer = place(database, arrive(text), arrive(text.upper()), arrive(f"{text} please"))
    assert same == louder == longer == placement


@pytest.mark.usefixtures("soon")
def test_a_conversation_stays_on_its_side(database: sa.Engine) -> None:
    held, _ = find(database, "heldout")
    first, later = place(database, arrive(held, conversation="a"), arrive("And then what happened?", conversation="a"))
    assert (first.split, later.split) == ("heldout", "heldout")
    [learnt] = place(database, arrive("Something new in a conversation that is learnt from", conversation="b"))
    texts = [f"{say(number)} {number}" for number in range(600, 640)]
    begun = learnt.split
    if begun == "train":
        assert {each.split for each in place(database, *(arrive(t, conversation="b") for t in texts))} == {"train"}
    [crossing] = place(database, arrive(held, conversation="b"))
    assert crossing.split == "heldout"  # a prompt that judges, in a conversation that is learnt from


def test_before_there_are_choices_enough_only_what_belongs_to_the_held_out_is(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splits, "MIN_CHOICES", 0)
    held, placement = find(database, "heldout")
    monkeypatch.setattr(splits, "MIN_CHOICES", 500)
    others = [arrive(say(number)) for number in range(1000, 1100)]
    assert {each.split for each in place(database, *others)} == {"train"}
    assert place(database, arrive(held + " now")) == [placement]


def test_choices_are_counted_within_a_batch_and_signals_are_not(
    database: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def choose(cluster: int, num_choices: int, *, is_demonstration: bool) -> splits.Split:
        counted.append(num_choices)
        return "train"

    monkeypatch.setattr(clusters, "choose_split", choose)
    place(database, arrive(say(1)), arrive(say(2), is_choice=False), arrive(say(3)), arrive(say(4)))
    assert counted == [0, 1, 1, 2]


@pytest.mark.usefixtures("soon")
def test_the_order_of_arrival_decides_and_not_the_batches(tmp_path: Path) -> None:
    arrivals = [arrive(say(n % 150) + (" so" if n % 7 == 0 else ""), conversation=f"c{n % 40}") for n in range(400)]
    placed = []
    for size in (1, 13, 400):
        engine = open_database(f"sqlite:{tmp_path / f'{size}.db'}")
        create_tables(engine, inbox.metadata)
        placed.append([p for start in range(0, 400, size) for p in place(engine, *arrivals[start : start + size])])
        engine.dispose()
    assert placed[0] == placed[1] == placed[2]
    assert {each.split for each in placed[0]} == {"train", "heldout", "auditor"}


def test_a_crash_leaves_no_cluster_behind(database: sa.Engine) -> None:
    with pytest.raises(KeyError), write_transaction(database) as connection:
        place_rows(connection, [arrive(say(1))])
        raise KeyError
    with database.connect() as connection:
        assert connection.execute(sa.select(prompt_clusters)).all() == []
        assert connection.execute(sa.select(prompt_bands)).all() == []


def test_a_row_without_a_prompt_has_no_cluster(database: sa.Engine) -> None:
    assert place(database, Arrival("", [], "", is_choice=False)) == [Placement(0, "train")]


@pytest.mark.usefixtures("soon")
def test_rows_stored_by_others_are_placed_and_what_was_decided_stays(database: sa.Engine) -> None:
    def make(number: int, text: str) -> object:
        messages = [{"role": "user", "content": text}]
        return make_record(number, make_choice(make_comparison(f"cmp-{number}", messages=messages, conversation="")))

    records = [make(number, say(number // 2)) for number in range(60)]
    with write_transaction(database) as connection:
        inbox.consume(connection, records)  # type: ignore[arg-type]  # as a replay does
        decided = sa.update(preferences).where(preferences.c.id.in_([1, 2])).values(split="heldout")
        connection.execute(decided)  # by an older release
    with database.connect() as connection:
        assert (
            connection.execute(sa.select(preferences.c.cluster).where(preferences.c.cluster.is_not(None))).all() == []
        )
    with write_transaction(database) as connection:
        assert [place_undecided(connection, limit=40) for _ in range(3)] == [40, 20, 0]
        rows = connection.execute(sa.select(preferences).order_by(preferences.c.id)).all()
    assert [row.split for row in rows[:2]] == ["heldout", "heldout"]
    assert all(
        one.split == other.split and one.cluster == other.cluster
        for one, other in zip(rows[::2], rows[1::2], strict=True)
    )
    assert {row.split for row in rows} >= {"train", "heldout"} and None not in {row.cluster for row in rows}
    [another] = place(database, arrive(say(0)))
    assert another.split == "heldout"  # another user's choice on what was held out before there were clusters


@pytest.mark.usefixtures("soon")
def test_a_row_whose_answers_were_picked_begins_what_is_learnt_from(database: sa.Engine) -> None:
    placed = place(database, *(arrive(say(number), may_judge=False) for number in range(100)))
    assert {each.split for each in placed} == {"train"}
    again = place(database, *(arrive(say(number)) for number in range(100)))
    assert {each.split for each in again} == {"train"}  # what was learnt from cannot judge any more


@pytest.mark.usefixtures("soon")
@pytest.mark.parametrize("split", ["heldout", "auditor"])
def test_a_row_whose_answers_were_picked_neither_judges_nor_teaches_on_a_prompt_that_judges(
    database: sa.Engine, split: str
) -> None:
    text, placement = find(database, split)
    same, later = place(database, arrive(text, may_judge=False), arrive("And then?", conversation="c", may_judge=False))
    assert (same.cluster, same.split) == (placement.cluster, "unused")
    assert later.split == "train"
    place(database, arrive(text, conversation="d"))
    [follow_up] = place(database, arrive("What came of it in the end?", conversation="d", may_judge=False))
    assert follow_up.split == "unused"


@pytest.mark.usefixtures("soon")
def test_the_share_of_a_stored_choice_decides_when_it_is_placed_later(database: sa.Engine) -> None:
    text, _ = find(database, "heldout")
    choices = [
        make_choice(make_comparison(f"c-{share}", messages=[{"role": "user", "content": text}], share=share))
        for share in ("random", "informative", "telling")
    ]
    with write_transaction(database) as connection:
        inbox.consume(connection, [make_record(i, choice) for i, choice in enumerate(choices)])
    with write_transaction(database) as connection:
        place_undecided(connection)
        columns = preferences.c
        found = connection.execute(sa.select(columns.share, columns.split).order_by(columns.id)).all()
    assert [tuple(row) for row in found] == [("random", "heldout"), ("informative", "unused"), ("telling", "unused")]

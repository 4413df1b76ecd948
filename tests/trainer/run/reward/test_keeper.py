"""The reward model's saved states: a damaged one is set aside, never deleted, and the one before it is taken."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.database import tables
from feedback.log import NewRecord
from tests.feedback.samples import make_record as make_signal_record
from tests.feedback.samples import make_signal
from tests.trainer.workbench import Killed, Workbench
from trainer.judge.frozen import digest_prompt
from trainer.learn.isolation import RoundAborted
from trainer.run.reward import keeper, lessons
from trainer.run.reward.keeper import list_states, updates
from trainer.settings import TrainerSettings
from trainer.text.pairs import Pair, Rated


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    """No round comes; an update takes sixteen preferences."""
    trainer = {"round_every_preferences": 1000, "round_every_minutes": 0, "reward": {"update_every_preferences": 16}}
    built = Workbench(TrainerSettings(state_dir=tmp_path, trainer=trainer))
    yield built
    built.writer.close()


def learn(bench: Workbench, num: int) -> None:
    learner = bench.start()
    bench.send(num)
    bench.run_all(learner)


def names(bench: Workbench) -> list[str]:
    """States, those set aside too."""
    return sorted(path.name for path in bench.settings.reward_dir.iterdir() if path.is_dir())


def count_new(bench: Workbench) -> Counter[str]:
    return Counter(event for batch, _ in bench.reward.seen for event in batch)


def test_a_damaged_state_is_set_aside_and_the_one_before_it_taken(bench: Workbench) -> None:
    learn(bench, 45)
    assert names(bench) == ["v-000001", "v-000002"]
    first, second = (set(batch) for batch, _ in bench.reward.seen)
    (bench.settings.reward_dir / "v-000002" / "version").write_text("{")
    learner = bench.start()
    assert bench.reward.version == 1
    aside, kept = names(bench)
    assert kept == "v-000001" and aside.startswith("unreadable-v-000002-")
    assert (bench.settings.reward_dir / aside / "version").read_text() == "{"
    bench.run_all(learner)
    assert second <= count_new(bench).keys()  # the model that was lost had learnt from them; this one had not
    assert not first & count_new(bench).keys()
    assert set(count_new(bench).values()) == {1}


def test_a_kill_after_the_state_was_set_aside_undoes_its_marks_all_the_same(bench: Workbench) -> None:
    learn(bench, 45)
    second = set(bench.reward.seen[1][0])
    state = bench.settings.reward_dir / "v-000002"
    state.rename(bench.settings.reward_dir / "unreadable-v-000002-1")
    bench.run_all(bench.start())
    assert second <= count_new(bench).keys()


def test_a_state_that_does_not_say_what_it_used_is_set_aside_too(bench: Workbench) -> None:
    learn(bench, 45)
    second = set(bench.reward.seen[1][0])
    (bench.settings.reward_dir / "v-000002" / "used.json").write_text('{"new": "?"}')
    bench.run_all(bench.start())
    assert second <= count_new(bench).keys()  # the database says it too


def test_what_nobody_knows_of_a_state_is_not_learnt_from_twice(bench: Workbench) -> None:
    learn(bench, 45)
    second = set(bench.reward.seen[1][0])
    (bench.settings.reward_dir / "v-000002" / "used.json").write_text('{"new": "?"}')
    bench.writer.run(lambda connection: connection.execute(sa.update(updates).values(uses=""))).result()
    bench.run_all(bench.start())
    assert bench.reward.version == 1
    assert not second & count_new(bench).keys()  # as an older release left them


def test_a_trainer_that_comes_back_takes_up_where_the_other_began_and_learns_what_only_the_other_knew(
    bench: Workbench, tmp_path: Path
) -> None:
    """Two disks, one database: the second trainer begins anew, the first one's states are no part of what it did."""
    learn(bench, 45)
    everything = set(count_new(bench))
    own = bench.settings.reward_dir
    aside = own.rename(tmp_path / "first-disk")
    bench.run_all(bench.start())
    assert everything <= count_new(bench).keys() and set(count_new(bench).values()) == {1}
    own.rename(tmp_path / "second-disk")
    aside.rename(own)
    learner = bench.start()
    assert names(bench) == [] and bench.reward.version == 0
    bench.run_all(learner)
    assert everything <= count_new(bench).keys() and set(count_new(bench).values()) == {1}


def test_an_older_copy_of_the_states_learns_what_came_after_it(bench: Workbench, tmp_path: Path) -> None:
    """Another trainer went on from a copy of this disk, and died: this one goes on from what both know."""
    learn(bench, 16)
    copy = tmp_path / "copy"
    shutil.copytree(bench.settings.reward_dir, copy)
    first = set(count_new(bench))
    learn(bench, 32)
    later = set(count_new(bench))
    shutil.rmtree(bench.settings.reward_dir)
    copy.rename(bench.settings.reward_dir)
    learner = bench.start()
    assert bench.reward.version == 1
    bench.run_all(learner)
    assert later <= count_new(bench).keys() and not first & count_new(bench).keys()
    assert set(count_new(bench).values()) == {1}


def test_with_no_state_that_loads_it_learns_from_everything_again_and_deletes_nothing(bench: Workbench) -> None:
    learn(bench, 45)
    learnt = set(count_new(bench))
    for state in list_states(bench.settings.reward_dir):
        (state / "version").unlink()
    learner = bench.start()
    assert bench.reward.version == 0
    assert len(names(bench)) == 2 and all(name.startswith("unreadable-") for name in names(bench))
    bench.run_all(learner)
    assert learnt <= count_new(bench).keys()


def test_the_state_that_was_loaded_stays_while_newer_ones_come(bench: Workbench) -> None:
    learn(bench, 45)
    learner = bench.start()
    bench.send(80)
    bench.run_all(learner)
    assert bench.reward.version >= 5
    assert names(bench) == ["v-000002", f"v-{bench.reward.version - 1:06d}", f"v-{bench.reward.version:06d}"]


def count_marks(bench: Workbench) -> Counter[int]:
    query = sa.select(inbox.preferences.c.used_as_new).where(inbox.preferences.c.split == "train")
    with bench.database.connect() as connection:
        return Counter(connection.execute(query).scalars())


def test_many_choices_are_learnt_in_one_pass_and_marked_once(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "BULK_CHUNK", 50)
    monkeypatch.setattr(tables, "_MAX_PARAMETERS", 70)
    learner = bench.start()
    bench.send(600)  # 20 updates of 16 rows, and those that are held out
    learner.step()
    assert bench.reward.version == 1
    assert len(bench.reward.seen) == 1
    new, _ = bench.reward.seen[0]
    assert len(new) >= 320
    assert count_marks(bench) == {1: len(new)}
    state = bench.board.read().round
    assert (state.state, state.progress) == ("learning", 1.0)
    assert state.reason == f"the reward model learns {len(new)} choices in one pass"
    assert not learner._keeper.is_due()


def test_a_pass_that_was_killed_begins_again_with_nothing_marked(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = bench.start()
    bench.send(600)

    def die(chunks, progress, *, total=None):  # type: ignore[no-untyped-def]
        next(iter(chunks))
        raise Killed

    monkeypatch.setattr(bench.reward, "learn_in_bulk", die)
    with pytest.raises(Killed):
        learner.step()
    learner = bench.start()
    assert set(count_marks(bench)) == {0}
    learner.step()
    assert set(count_marks(bench)) == {1}
    with bench.database.connect() as connection:
        assert [row.version for row in connection.execute(updates.select())] == [1]


def test_a_stop_ends_a_pass_between_two_chunks(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(600)
    bench.stopping.set()
    with pytest.raises(RoundAborted):
        learner.step()
    assert set(count_marks(bench)) == {0}


def say(bench: Workbench, num: int, **said: object) -> None:
    """So many signals, which say nothing but this; the first is event `said-<signals before>`."""
    nothing = {"thumb": None, "rating": None, "scale": None, "edited_text": None, "outcome": None, "conversation": ""}
    records = []
    for number in range(bench.num_sent, bench.num_sent + num):
        # Edits ask one thing, which is not held out: of other prompts that an edit is the first to ask, a tenth is.
        asked = [{"role": "user", "content": "an edit" if "edited_text" in said else f"signal {number}"}]
        signal = make_signal(f"c-{number}", **{"messages": asked, **nothing, **said})
        record = make_signal_record(number, signal, event_id=f"said-{number}")
        records.append(NewRecord(key=record.key, value=record.value, headers=record.headers))
    bench.send_records(records)


def list_rated(bench: Workbench) -> list[str]:
    return [row.event_id for row in bench.reward.taught if isinstance(row, Rated)]


def list_edits(bench: Workbench) -> list[str]:
    return [row.event_id for row in bench.reward.taught if isinstance(row, Pair) and row.is_edit]


def test_no_thumb_is_lost_among_signals_that_say_nothing(bench: Workbench) -> None:
    """An update looks at 64 signals."""
    learner = bench.start()
    for number in range(100):
        say(bench, 1, thumb="up" if number % 2 else None)
    bench.send(16)
    bench.run_all(learner)
    learner._keeper.catch_up(learner._reporter, lambda: None)
    assert list_rated(bench) == [f"said-{number}" for number in range(1, 100, 2)]


def test_thumbs_alone_teach_as_soon_as_there_are_as_many_as_an_update_has_choices(bench: Workbench) -> None:
    learner = bench.start()
    say(bench, 15, thumb="down")
    assert not learner.step()
    say(bench, 1, thumb="up")
    bench.run_all(learner)
    assert (bench.reward.version, len(list_rated(bench))) == (1, 16)
    bench.run_all(bench.start())
    assert (bench.reward.version, list_rated(bench)) == (1, [])


def test_signals_that_say_nothing_make_no_version_and_are_read_once(bench: Workbench) -> None:
    learner = bench.start()
    say(bench, 20)
    assert learner.step()
    assert not learner.step()
    assert bench.reward.version == 0


def test_an_edit_teaches_once_that_it_is_better_than_the_answer(bench: Workbench) -> None:
    bench.settings.trainer.edit_weight = 0.5
    learner = bench.start()
    say(bench, 16, edited_text="Better.", thumb="down")
    bench.run_all(learner)
    [edit, *_] = [row for row in bench.reward.taught if isinstance(row, Pair)]
    preferred = edit.first if edit.preferred == "first" else edit.second
    assert (preferred.text, edit.weight) == ("Better.", 0.5)
    assert list_edits(bench) == list_rated(bench) == [f"said-{number}" for number in range(16)]
    learner = bench.start()
    bench.send(16)
    bench.run_all(learner)
    assert bench.reward.version == 2 and list_edits(bench) == []


def test_a_kill_between_state_and_marks_repeats_no_edit(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = bench.start()
    say(bench, 16, edited_text="Better.")

    def die(point: str) -> None:
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(keeper, "reach", die)
        bench.run_all(learner)
    bench.run_all(bench.start())
    assert (bench.reward.version, list_edits(bench)) == (1, [])


def test_a_state_from_before_edits_were_learnt_makes_up_for_them(bench: Workbench) -> None:
    learner = bench.start()
    say(bench, 16, edited_text="Better.", thumb="up")
    bench.run_all(learner)
    used = bench.settings.reward_dir / "v-000001" / "used.json"
    old = {name: value for name, value in json.loads(used.read_text()).items() if name != "edited_until"}
    used.write_text(json.dumps(old))
    bench.run_all(bench.start())
    assert len(list_edits(bench)) == 16 and list_rated(bench) == []


def test_edits_that_weigh_nothing_are_not_learnt(bench: Workbench) -> None:
    bench.settings.trainer.edit_weight = 0.0
    learner = bench.start()
    say(bench, 20, edited_text="Better.")
    bench.run_all(learner)
    assert bench.reward.version == 0


def test_one_pass_takes_ratings_and_edits_too(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lessons, "BULK_CHUNK", 50)
    learner = bench.start()
    say(bench, 330, edited_text="Better.", rating=4.0, scale=5)
    bench.send(20)
    learner.step()
    assert bench.reward.version == 1
    assert (len(list_edits(bench)), len(list_rated(bench)), count_marks(bench)[1]) == (330, 330, 20)
    reason = "the reward model learns 20 choices and 660 ratings and edits in one pass"
    assert bench.board.read().round.reason == reason
    learner = bench.start()
    learner._keeper.catch_up(learner._reporter, lambda: None)
    assert (bench.reward.version, bench.reward.taught) == (1, [])


def test_a_signal_that_has_no_split_yet_is_waited_for(bench: Workbench) -> None:
    learner = bench.start()
    say(bench, 20, thumb="up")
    second = inbox.signals.c.id == 2
    unplaced = sa.update(inbox.signals).where(second).values(cluster=None, split="")
    bench.writer.run(lambda connection: connection.execute(unplaced)).result()
    learner._keeper.catch_up(learner._reporter, lambda: None)
    assert list_rated(bench) == ["said-0"] and not learner.step()
    placed = sa.update(inbox.signals).where(second).values(cluster=1, split="train")
    bench.writer.run(lambda connection: connection.execute(placed)).result()
    bench.run_all(learner)
    assert len(list_rated(bench)) == 20


@pytest.mark.parametrize("num", [45, 400])
def test_what_a_frozen_set_asks_teaches_nothing_and_is_waited_for_no_more(bench: Workbench, num: int) -> None:
    bench.frozen_prompts = frozenset(digest_prompt([{"role": "user", "content": f"Question {n}!"}]) for n in range(40))
    learner = bench.start()
    bench.send(num)
    say(bench, 1, thumb="up", edited_text="Better.", messages=[{"role": "user", "content": "question 3"}])
    bench.run_all(learner)
    learner._keeper.catch_up(learner._reporter, lambda: None)
    learnt = {row.event_id for row in bench.reward.taught}
    assert learnt == {f"event-{n}" for n in range(40, num)}
    assert count_marks(bench) == {1: num}


def test_a_prompt_that_is_frozen_later_is_replayed_no_more(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(16)
    bench.run_all(learner)
    bench.frozen_prompts = frozenset(digest_prompt([{"role": "user", "content": f"question {n}"}]) for n in range(16))
    bench.send(16)
    bench.run_all(learner)
    assert [replayed for _, replayed in bench.reward.seen] == [[], []]


def test_fewer_choices_are_learnt_update_by_update(bench: Workbench) -> None:
    learn(bench, 200)
    assert bench.reward.version >= 9


def test_updates_measure_nothing(bench: Workbench) -> None:
    learner = bench.start()
    measured = len(bench.reward.num_measured)
    bench.send(100)
    bench.run_all(learner)
    assert bench.reward.version >= 5
    assert len(bench.reward.num_measured) == measured


def test_a_version_that_is_refused_goes_on_learning_while_rounds_use_the_one_before(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(20)
    bench.run_all(learner)
    keeper = learner._keeper
    keeper.measure(learner._reporter)
    assert (bench.reward.version, keeper.version_in_use) == (1, 1)
    bench.refusal = "accuracy fell from .80 to .60"
    bench.send(60)
    bench.run_all(learner)
    newest = bench.reward.version
    keeper.measure(learner._reporter)
    view = bench.board.read().reward
    assert (view.version, view.version_in_use, view.refused) == (newest, 1, bench.refusal)
    with keeper.holding(keeper.version_in_use):
        assert bench.reward.version == 1
    assert bench.reward.version == newest > 2
    assert "v-000001" in names(bench)  # kept, though newer states came
    bench.refusal = ""
    bench.send(20)
    bench.run_all(learner)
    keeper.measure(learner._reporter)
    assert keeper.version_in_use == bench.reward.version


def test_a_version_is_held_against_the_one_in_use_on_the_choices_that_came_after_it(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(32)
    bench.run_all(learner)
    learner._keeper.measure(learner._reporter)
    assert bench.comparisons == []  # the first version is compared with none
    bench.send(48)
    bench.run_all(learner)
    newest = bench.reward.version
    learner._keeper.measure(learner._reporter)
    [since] = bench.comparisons
    assert (since.new.foreseen, since.last.foreseen) == ((0, 48), (48, 48))  # what the fake says
    assert since.new.heldout == since.last.heldout
    assert bench.reward.version == newest and len(bench.reward.record.rows) == 80

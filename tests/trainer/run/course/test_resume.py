"""Killed in any phase, a round goes on with the same rows, number and numbers, and leaves nothing behind."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError

from feedback import inbox
from feedback.manifest import read_manifest
from tests.trainer.workbench import Killed, Workbench, kill_at
from trainer.run.course import files as round_files
from trainer.run.course.files import RoundFiles
from trainer.run.course.task import Judged, Task
from trainer.run.reward.states import name_state
from trainer.run.status.requests import RoundRequest

POINTS = ["round.prepared", "round.step", "round.trained", "round.judged", "round.published"]


def leave_killed(bench: Workbench, monkeypatch: pytest.MonkeyPatch, point: str = "round.prepared") -> None:
    """A round on forty choices, whose trainer was killed there."""
    learner = bench.start()
    bench.send(40)
    kill_at(point, monkeypatch)
    with pytest.raises(Killed):
        bench.run_all(learner)


@pytest.mark.parametrize("point", POINTS)
def test_a_round_killed_at_any_point_trains_once_on_the_same_rows(
    bench: Workbench, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_killed(bench, monkeypatch, point)
    bench.send(25)  # what comes meanwhile is the next round's
    bench.run_all(bench.start())
    first = bench.finished()[0]
    assert (first["number"], first["outcome"], first["trigger_choice_at"]) == (1, "published", 39.0)
    assert len(bench.names()) == 2
    assert len(bench.trained) == (2 if point == "round.step" else 1)  # by its snapshots it goes on where it was
    assert all(rows == bench.trained[0] for rows in bench.trained)
    assert bench.num_judged == 1
    assert list(bench.settings.rounds_dir.iterdir()) == []
    with bench.database.connect() as connection:
        rows = {row.event_id: row.id for row in connection.execute(sa.select(inbox.preferences))}
    manifest = read_manifest(bench.settings.checkpoints_dir / first["checkpoint"])
    assert max(rows[event] for event in bench.trained[0]) <= 40 == manifest.settings["last_preference_id"]


def test_a_round_that_was_planned_keeps_its_settings_and_its_reward_version(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_killed(bench, monkeypatch)
    planned = RoundFiles(bench.settings.rounds_dir, 1).read_plan()
    assert planned is not None
    bench.settings.trainer.dpo.beta = 0.7
    bench.run_all(bench.start())
    assert bench.tasks[0].plan == planned
    assert bench.tasks[0].plan.settings["dpo"]["beta"] == 0.1


def test_a_round_that_goes_on_leaves_what_an_operator_asked_for_meanwhile_to_the_next(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_killed(bench, monkeypatch)
    learner = bench.start()
    bench.gateway.is_down = True
    assert not learner.step()
    assert bench.requests.ask(RoundRequest(from_base=True))
    bench.gateway.is_down = False
    learner.step()
    assert [row["start"] for row in bench.finished()] == ["stable"]
    learner.step()
    assert [row["start"] for row in bench.finished()] == ["stable", "base"]
    assert bench.requests.look() is None


def test_what_was_asked_for_waits_while_the_database_is_away_and_not_for_a_round_that_failed(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = bench.start()
    bench.send(10)
    bench.requests.ask(RoundRequest(from_base=True))
    errors: list[Exception] = [OperationalError("", {}, Exception("the database is gone")), ValueError("no")]

    def fail() -> tuple[bool, str]:
        raise errors.pop(0)

    monkeypatch.setattr(bench, "has_something_to_learn", fail)
    learner = bench.start()
    with pytest.raises(OperationalError):
        learner.step()
    assert bench.requests.look() is not None
    bench.run_all(learner)
    assert [row["reason"] for row in bench.finished()] == ["failed: ValueError: no"]
    assert bench.requests.look() is None


def test_a_round_that_goes_on_is_judged_by_the_reward_version_of_its_plan(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, versions = bench.judge, []

    def judge_by(task: Task) -> Judged:
        versions.append(bench.reward.version)
        return judge(task)

    monkeypatch.setattr(bench, "judge", judge_by)
    learner = bench.start()
    bench.send(40)
    kill_at("round.step", monkeypatch)
    with pytest.raises(Killed):
        bench.run_all(learner)
    planned = bench.tasks[0].plan.reward_version
    bench.gateway.is_down = True
    learner = bench.start()
    bench.send(20)
    bench.run_all(learner)  # the round waits, the reward model learns on
    bench.gateway.is_down = False
    learner = bench.start()  # and the newer version is accepted
    assert learner._keeper.version_in_use > planned
    learner.step()
    assert versions == [planned]
    assert bench.reward.version == learner._keeper.version_in_use

    shutil.rmtree(bench.settings.reward_dir / name_state(planned))
    with learner._keeper.holding(planned):
        assert bench.reward.version == learner._keeper.version_in_use


def test_the_watermark_is_the_one_that_the_round_read(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.send(40)
    topic = bench.settings.topic
    moved = sa.update(inbox.offsets).where(inbox.offsets.c.topic == "t").values(topic=topic)
    bench.writer.run(lambda connection: connection.execute(moved)).result()
    train = bench.train

    def train_while_more_comes(task: Any) -> dict[str, float]:
        behind = sa.update(inbox.offsets).where(inbox.offsets.c.topic == topic).values(next=99)
        bench.writer.run(lambda connection: connection.execute(behind)).result()
        return train(task)

    monkeypatch.setattr(bench, "train", train_while_more_comes)
    bench.run_all(bench.start())
    manifest = read_manifest(bench.settings.checkpoints_dir / bench.finished()[0]["checkpoint"])
    assert manifest.watermark == {0: 40}


def test_rows_that_were_erased_meanwhile_have_the_round_prepared_anew(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = bench.start()
    bench.send(40)
    kill_at("round.trained", monkeypatch)
    with pytest.raises(Killed):
        bench.run_all(learner)
    gone = bench.trained[0][0]
    erase = sa.delete(inbox.preferences).where(inbox.preferences.c.event_id == gone)
    bench.writer.run(lambda connection: connection.execute(erase)).result()
    bench.run_all(bench.start())
    assert bench.trained[1] == [event for event in bench.trained[0] if event != gone]
    assert [row["number"] for row in bench.finished()] == [1]


def test_a_plan_that_a_disk_has_damaged_is_made_anew(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_killed(bench, monkeypatch)
    (bench.settings.rounds_dir / "r-000001" / "plan.json").write_text("{")
    bench.run_all(bench.start())
    assert [row["outcome"] for row in bench.finished()] == ["published"]


def test_a_kill_between_record_and_removal_leaves_no_files(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = bench.start()
    bench.send(40)

    def die(_: RoundFiles) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(round_files.RoundFiles, "remove", die)
        with pytest.raises(Killed):
            bench.run_all(learner)
    assert [path.name for path in bench.settings.rounds_dir.iterdir()] == ["r-000001"]
    bench.start()
    assert list(bench.settings.rounds_dir.iterdir()) == []


def test_the_curve_of_a_resumed_round_has_each_share_once(bench: Workbench) -> None:
    files = RoundFiles(bench.settings.rounds_dir, 1)
    files.path.mkdir(parents=True)
    for share, loss in ((0.25, 1.0), (0.5, 0.9), (0.5, 0.8), (0.75, 0.7)):
        files.add_point(share, {"loss": loss})
    with (files.path / "curve.jsonl").open("a") as file:
        file.write('{"share": 0.9, "lo')
    assert [(point["share"], point["loss"]) for point in files.read_curve()] == [(0.25, 1.0), (0.5, 0.8), (0.75, 0.7)]


def test_the_time_of_every_attempt_counts(bench: Workbench) -> None:
    files = RoundFiles(bench.settings.rounds_dir, 1)
    files.add_phase("training", 2.0)
    files.add_phase("training", 3.0)
    files.add_phase("judging", 1.0)
    assert files.read_phases() == {"training": 5.0, "judging": 1.0}

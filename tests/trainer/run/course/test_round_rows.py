"""What a round trains on: rows of its policy, each new one once, replays of what it knew, a restart once."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.log import NewRecord
from feedback.manifest import read_manifest
from tests.feedback.samples import make_record as make_signal_record
from tests.feedback.samples import make_signal
from tests.trainer.workbench import Killed, Workbench
from trainer.judge.frozen import digest_prompt
from trainer.learn.reward.prequential import Prequential
from trainer.math.weights import WeightedRow
from trainer.run import rounds
from trainer.run.assembly import Learning
from trainer.run.course.task import Judged
from trainer.run.learner import Learner
from trainer.run.report.archive import RoundArchive
from trainer.run.rows import pool
from trainer.run.status.requests import RoundRequest
from trainer.settings import TrainerSettings
from trainer.text.rejected import log_rejected


def promote_newest(bench: Workbench) -> None:
    """The newest checkpoint is the stable one from here on."""
    bench.gateway.known.insert(0, bench.gateway.known.pop())


def list_training_rows(bench: Workbench) -> list[str]:
    query = sa.select(inbox.preferences.c.event_id).where(inbox.preferences.c.split == "train")
    with bench.database.connect() as connection:
        return list(connection.execute(query.order_by(inbox.preferences.c.id)).scalars())


def settings_of(bench: Workbench, checkpoint: str) -> dict[str, Any]:
    return read_manifest(bench.settings.checkpoints_dir / checkpoint).settings


def test_new_rows_beyond_the_cap_stay_for_the_next_round_and_make_it_due(bench: Workbench) -> None:
    bench.settings.trainer.dpo.max_new_pairs = 20
    learner = bench.start()
    bench.send(85)
    learner.step()
    promote_newest(bench)
    bench.run_all(learner)  # at least 40 were left, and nothing came
    rows = list_training_rows(bench)
    first, second = bench.tasks[0].plan, bench.tasks[1].plan
    assert first.new == rows[-20:]
    assert first.num_left == len(rows) - 20
    assert second.new == rows[-40:-20]
    assert sorted(second.replayed) == sorted(first.new)  # half new, half replayed


def test_what_a_stopped_round_left_makes_no_other_round_due(bench: Workbench) -> None:
    bench.settings.trainer.dpo.max_new_pairs = 20
    bench.verdict = Judged(ok=False, reason="no")
    learner = bench.start()
    bench.send(85)
    bench.run_all(learner)
    assert len(bench.finished()) == 1


def test_rows_of_another_policy_are_left_alone(bench: Workbench) -> None:
    bench.send(40)
    other = sa.update(inbox.preferences).where(inbox.preferences.c.id % 2 == 0).values(policy="another")
    bench.writer.run(lambda connection: connection.execute(other)).result()
    learner = bench.start()
    bench.run_all(learner)
    assert bench.finished() == []
    assert bench.board.read().round.reason == "20 of 40 new decisive preferences"
    bench.requests.ask(RoundRequest())
    bench.run_all(learner)
    with bench.database.connect() as connection:
        policies = {row.event_id: row.policy for row in connection.execute(sa.select(inbox.preferences))}
    assert {policies[event] for event in bench.trained[0]} == {"default"}


def test_a_restart_begins_from_the_base_once_on_a_full_replay_though_the_gate_says_no(bench: Workbench) -> None:
    bench.settings.trainer.dpo.restart_every = 2
    bench.settings.trainer.dpo.max_new_pairs = 30
    learner = bench.start()
    for _ in range(2):
        run_promoted_round(bench, learner)
    bench.verdict = Judged(ok=False, reason="no")
    for _ in range(2):
        bench.send(40)
        bench.run_all(learner)
    plans = [task.plan for task in bench.tasks]
    assert [plan.start for plan in plans] == ["stable", "stable", "base", "stable"]
    learnt = {event for plan in plans[:2] for event in plan.event_ids}
    assert set(plans[2].replayed) == learnt
    assert {*plans[2].event_ids} == {*list_training_rows(bench)[: len(plans[2].event_ids)]}  # though 30 new ones fit
    assert len(plans[2].new) > 30 == len(plans[3].new)
    assert [row["outcome"] for row in bench.finished()] == ["published", "published", "stopped", "stopped"]


def test_after_a_stopped_round_the_next_begins_from_the_base_and_then_from_stable_again(bench: Workbench) -> None:
    learner = bench.start()
    run_promoted_round(bench, learner)
    bench.verdict = Judged(ok=False, reason="no")
    for _ in range(4):
        bench.send(40)
        bench.run_all(learner)
    plans = [task.plan for task in bench.tasks]
    assert [plan.start for plan in plans] == ["stable", "stable", "base", "stable", "base"]
    assert set(plans[2].replayed) == set(plans[0].event_ids)  # what the chain knew is learnt again


def test_a_chain_of_few_rows_goes_on_from_stable_until_there_are_enough(bench: Workbench) -> None:
    bench.settings.trainer.dpo.restart_every = 1
    bench.settings.trainer.dpo.restart_min_rows = 100
    learner = bench.start()
    for _ in range(4):
        run_promoted_round(bench, learner)
    plans = [task.plan for task in bench.tasks]
    enough = [plan.num_available >= 100 for plan in plans]
    assert not enough[1] and enough[-1]
    assert [plan.start == "base" for plan in plans[1:]] == enough[1:]


def test_a_restart_after_rejected_rounds_learns_all_that_none_of_them_left(bench: Workbench) -> None:
    bench.settings.trainer.dpo.max_new_pairs = 30
    bench.verdict = Judged(ok=False, reason="no")
    learner = bench.start()
    for _ in range(4):
        bench.send(40)
        bench.run_all(learner)
    restart = bench.tasks[3].plan
    assert (restart.start, restart.replayed, restart.num_left) == ("base", [], 0)
    assert restart.new == list_training_rows(bench)  # of 160 choices, and not the newest 30


def test_a_round_that_ended_before_it_trained_is_no_failed_chain(bench: Workbench) -> None:
    learner = bench.start()
    bench.may_learn = False
    bench.send(40)
    bench.run_all(learner)
    bench.may_learn = True
    bench.error = RuntimeError("out of memory")
    for _ in range(2):
        bench.send(40)
        bench.run_all(learner)
    assert [row["outcome"] for row in bench.finished()] == ["stopped"] * 3
    assert [task.plan.start for task in bench.tasks] == ["stable", "stable"]


@pytest.mark.parametrize("dies", [False, True])
def test_a_restart_that_fails_or_dies_is_not_followed_by_another(bench: Workbench, dies: bool) -> None:
    bench.verdict = Judged(ok=False, reason="no")
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    bench.error = Killed() if dies else RuntimeError("out of memory")
    bench.send(40)
    if dies:
        for _ in range(bench.settings.trainer.max_attempts):
            with pytest.raises(Killed):
                learner.step()
            learner = bench.start()
    bench.run_all(learner)
    bench.error = None
    bench.send(40)
    bench.run_all(learner)
    assert [row["start"] for row in bench.finished()] == ["stable", "base", "stable"]
    assert bench.tasks[-1].plan.start == "stable"


def test_a_restart_given_up_by_a_trainer_without_its_files_is_on_record_as_one(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(10)
    bench.requests.ask(RoundRequest(from_base=True))
    bench.error = Killed()
    for _ in range(bench.settings.trainer.max_attempts):
        with pytest.raises(Killed):
            learner.step()
        shutil.rmtree(bench.settings.rounds_dir)  # another trainer takes over, on another machine
        learner = bench.start()
    bench.run_all(learner)
    [row] = bench.finished()
    assert (row["start"], row["outcome"]) == ("base", "stopped")


def test_a_failed_chain_is_not_forgotten_over_a_round_that_learnt_nothing(bench: Workbench) -> None:
    learner = bench.start()
    bench.verdict = Judged(ok=False, reason="no")
    for may_learn in (True, False, True):
        bench.may_learn = may_learn
        bench.send(40)
        bench.run_all(learner)
    assert [task.plan.start for task in bench.tasks] == ["stable", "base"]


def test_the_gates_alpha_is_spread_over_the_rounds_beside_one_stable_checkpoint(bench: Workbench) -> None:
    learner = bench.start()
    for is_ok in (False, False, True, False, False):
        bench.verdict = Judged(ok=is_ok, reason="")
        bench.send(40)
        bench.run_all(learner)
        if is_ok:
            promote_newest(bench)
    looks = [(task.plan.parent == bench.finished()[2]["checkpoint"], task.plan.look) for task in bench.tasks]
    assert looks == [(False, 1), (False, 2), (False, 3), (True, 1), (True, 2)]


def run_promoted_round(bench: Workbench, learner: Learner) -> None:
    """A round on 40 new choices whose checkpoint is promoted, with room for all of them."""
    bench.send(40)
    learner.step()
    promote_newest(bench)
    bench.writer.run(forget_left).result()


def forget_left(connection: sa.Connection) -> None:
    """As if no round had left any row over: they would make rounds due that the test does not count."""
    connection.execute(sa.text("UPDATE rounds SET num_left = 0"))


def test_an_operator_may_have_a_round_begin_from_the_base(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(10)
    assert bench.requests.ask(RoundRequest(from_base=True))
    assert not bench.requests.ask(RoundRequest())  # one at a time
    bench.run_all(learner)
    [row] = bench.finished()
    assert (row["start"], row["outcome"]) == ("base", "published")
    assert settings_of(bench, row["checkpoint"])["start"] == "base"
    assert bench.requests.look() is None


def test_a_round_without_any_row_is_stopped_with_its_reason(bench: Workbench) -> None:
    learner = bench.start()
    bench.requests.ask(RoundRequest())
    bench.run_all(learner)
    assert [row["reason"] for row in bench.finished()] == ["no row of its kind can be trained on"]


def test_the_manifest_says_how_its_round_was_made(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    made = settings_of(bench, bench.finished()[0]["checkpoint"])
    plan = bench.tasks[0].plan
    assert made["kind"] == "dpo" and made["start"] == "stable" and made["reference"] is None
    assert (made["seed"], made["reward_version"]) == (plan.seed, bench.reward.version)
    assert made["dpo"]["beta"] == 0.1
    assert made["code_version"]


def test_a_report_is_kept_of_every_round_beside_the_checkpoints(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    bench.verdict = Judged(ok=False, reason="facts fell", samples=[{"prompt": "<Q>", "before": "b", "after": "a"}])
    bench.send(40)
    bench.run_all(learner)
    reports = sorted(path.name for path in (bench.settings.checkpoints_dir / "reports").iterdir())
    published = bench.names()[1]
    assert reports == [f"{published}.html", f"{published}.json", "r-000002.html", "r-000002.json"]
    stopped = (bench.settings.checkpoints_dir / "reports" / "r-000002.html").read_text()
    assert "offline gate: facts fell" in stopped and "&lt;Q&gt;" in stopped
    archive = RoundArchive(bench.database, bench.settings.checkpoints_dir)
    second = archive.find_round(2)
    assert second is not None and second["samples"] == [{"prompt": "<Q>", "before": "b", "after": "a"}]
    assert second["curve"] and all(0 <= point["share"] <= 1 for point in second["curve"])
    (bench.settings.checkpoints_dir / "reports" / "r-000002.json").unlink()  # of an older trainer
    assert "samples" not in (archive.find_round(2) or {})


def test_a_report_that_cannot_be_written_stops_no_round(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(40)
    (bench.settings.checkpoints_dir / "reports").write_text("no directory")
    bench.run_all(learner)
    assert [row["outcome"] for row in bench.finished()] == ["published"]


def test_edits_make_pairs_of_the_weight_that_the_settings_say_and_none_at_nought(bench: Workbench) -> None:
    bench.settings.trainer.edit_weight = 0.25
    bench.send(40)
    record = make_signal_record(
        0, make_signal(messages=[{"role": "user", "content": "something else"}]), event_id="edit"
    )
    bench.send_records([NewRecord(key=record.key, value=record.value, headers=record.headers)])
    in_training = sa.update(inbox.signals).values(split="train")
    bench.writer.run(lambda connection: connection.execute(in_training)).result()
    bench.error = RuntimeError("no")
    bench.run_all(bench.start())
    [edit] = [row for row in bench.tasks[0].rows if row.event_id == "edit"]
    with bench.database.connect() as connection:
        [pair] = pool.load_pairs(connection, "default", ["edit"], 0.25, log_rejected)
        without = pool.read_pool(connection, policy="default", topic="t", taught=[], edit_weight=0.0)
    assert (edit.prompt.messages[0]["content"], pair.weight) == ("something else", 0.25)
    assert "edit" not in without.new


def test_a_choice_counts_half_after_the_half_life_of_the_settings() -> None:
    settings = TrainerSettings(trainer={"recency_half_life_days": 2})
    learning = SimpleNamespace(_settings=settings, reward=SimpleNamespace(record=Prequential()))
    weigh = Learning.make_weigher(learning)  # type: ignore[arg-type]
    rows = [WeightedRow(f"user-{n}", f"app-{n % 20}", 2 * 86400.0 * (n % 2)) for n in range(40)]
    weights = weigh(rows)
    assert weights[1] == pytest.approx(weights[0] / 2)


def test_rows_that_a_frozen_set_asks_are_left_out_and_counted(bench: Workbench) -> None:
    messages = [{"role": "user", "content": "Question, 7!"}]
    bench.frozen_prompts = frozenset({digest_prompt(messages)})
    learner = bench.start()
    bench.send(40)
    in_training = sa.update(inbox.preferences).values(split="train")
    bench.writer.run(lambda connection: connection.execute(in_training)).result()
    bench.run_all(learner)
    assert set(list_training_rows(bench)) - set(bench.trained[0]) == {"event-7"}
    plan = bench.tasks[0].plan
    assert (plan.num_frozen, len(plan.weights)) == (1, 39)
    checkpoint = bench.finished()[0]["checkpoint"]
    with bench.database.connect() as connection:
        assert rounds.find_round(connection, 1)["details"]["num_frozen"] == 1
    assert "frozen prompt" in (bench.settings.checkpoints_dir / "reports" / f"{checkpoint}.html").read_text()

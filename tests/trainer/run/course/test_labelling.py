"""A round with pairs that the reward model labelled: at most the share that is set, durable, and on record for erasure."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.errors import DatabaseError
from tests.trainer.workbench import Killed, Workbench, kill_at
from trainer.judge.frozen import digest_prompt
from trainer.learn.hearing import ignore_share
from trainer.learn.isolation import NotFinite, RoundAborted, run_isolated
from trainer.learn.reward.prequential import Foreseen, Prequential
from trainer.learn.rewards.rewards import Rewards
from trainer.learn.sampling.sampler import Samples, SamplingParameters, SamplingRequest
from trainer.run import rounds
from trainer.run.course.files import RoundFiles
from trainer.run.course.labelling import label_answers
from trainer.run.course.task import Task
from trainer.run.publish import lineage
from trainer.run.rows import pool
from trainer.run.rows.plan import count_labelled
from trainer.text.labelled_rows import Labelled
from trainer.text.pairs import Pair
from trainer.text.rejected import log_rejected


@pytest.fixture
def bench(bench: Workbench) -> Workbench:
    bench.settings.trainer.dpo.labelled_share = 0.3
    return bench


def list_labelled(bench: Workbench, attempt: int) -> list[tuple[str, str]]:
    """Event ids and what was preferred, of the labelled pairs that an attempt trained on."""
    rows = [row for row in bench.tasks[attempt].rows if isinstance(row, Pair)]
    return [(row.event_id, row.first.text) for row in rows if row.event_id.startswith("labelled-")]


def test_labelled_pairs_are_at_most_their_share_of_the_whole() -> None:
    assert [count_labelled(num, 0.3) for num in (0, 1, 2, 3, 7, 70)] == [0, 0, 0, 1, 3, 30]
    assert [count_labelled(70, share) for share in (0.0, 0.1, 0.25)] == [0, 7, 23]


def test_a_round_trains_on_labelled_pairs_and_says_so(bench: Workbench) -> None:
    bench.send(40)
    bench.run_all(bench.start())
    [done] = bench.finished()
    num = count_labelled(40, 0.3)
    assert num == 17
    assert len(bench.trained[0]) == 40 + num
    assert [name for name in bench.trained[0] if name.startswith("labelled-")] == [
        f"labelled-1-{i}" for i in range(num)
    ]
    assert (done["metrics"]["num_labelled"], done["metrics"]["labelled_probability"]) == (17.0, 0.75)
    assert done["phases"]["labelling"] >= 0
    with bench.database.connect() as connection:
        roles = sa.select(lineage.checkpoint_rows.c.role, sa.func.count()).group_by(lineage.checkpoint_rows.c.role)
        assert dict(connection.execute(roles).all()) == {"chosen": 40, "labelled": 17}
    report = (bench.settings.checkpoints_dir / "reports" / f"{done['checkpoint']}.html").read_text()
    assert "Labelled by the reward model" in report and "17 pairs" in report


def test_without_a_share_nothing_is_sampled(bench: Workbench) -> None:
    bench.settings.trainer.dpo.labelled_share = 0.0
    bench.send(40)
    bench.run_all(bench.start())
    assert (bench.num_labellings, len(bench.trained[0])) == (0, 40)
    assert "num_labelled" not in bench.finished()[0]["metrics"]


@pytest.mark.parametrize(("point", "num_labellings"), [("round.prepared", 1), ("round.labelled", 1), ("round.step", 1)])
def test_killed_and_resumed_a_round_has_the_same_labelled_pairs(
    bench: Workbench, point: str, num_labellings: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = bench.start()
    bench.send(40)
    kill_at(point, monkeypatch)
    with pytest.raises(Killed):
        bench.run_all(learner)
    bench.send(10)
    bench.run_all(bench.start())
    assert bench.num_labellings == num_labellings
    assert all(list_labelled(bench, i) == list_labelled(bench, 0) for i in range(len(bench.tasks)))
    assert len(list_labelled(bench, 0)) == 17
    assert [row["outcome"] for row in bench.finished()] == ["published"]
    assert list(bench.settings.rounds_dir.iterdir()) == []


@pytest.mark.parametrize(
    ("point", "name"),
    [
        ("round.labelled", "labelled.json"),
        ("round.trained", "trained/trained.json"),
        ("round.judged", "labelled.json"),
        ("round.judged", "verdict.json"),
    ],
)
def test_a_step_whose_file_is_damaged_is_done_anew(
    bench: Workbench, point: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.send(40)
    kill_at(point, monkeypatch)
    with pytest.raises(Killed):
        bench.run_all(bench.start())
    (RoundFiles(bench.settings.rounds_dir, 1).path / name).write_bytes(b'{"\x00')
    bench.run_all(bench.start())
    assert [(row["outcome"], row["metrics"]["num_labelled"]) for row in bench.finished()] == [("published", 17.0)]
    assert bench.num_labellings == 1 + (name == "labelled.json")


def test_a_reward_model_that_is_not_trusted_labels_nothing_and_the_round_goes_on(bench: Workbench) -> None:
    bench.distrust = "the reward model foresaw 55% of the last 60 choices, below 60%"
    bench.send(40)
    bench.run_all(bench.start())
    [done] = bench.finished()
    assert (done["outcome"], len(bench.trained[0]), done["metrics"]["num_labelled"]) == ("published", 40, 0.0)
    report = (bench.settings.checkpoints_dir / "reports" / f"{done['checkpoint']}.html").read_text()
    assert "None: the reward model foresaw 55% of the last 60 choices" in report


class FailingSampler:
    """Raises what it is given."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def sample(self, request: SamplingRequest) -> Samples:
        raise self.error


def test_labelling_that_fails_gives_none_and_says_why_but_for_the_database(bench: Workbench) -> None:
    bench.send(40)
    bench.run_all(bench.start())
    task = bench.tasks[0]
    record = Prequential(rows=[Foreseen(str(i), "first", 1.0) for i in range(40)])
    reward: Any = SimpleNamespace(version=3, record=record, fit=SimpleNamespace(log_nu=0.0))
    usable = SimpleNamespace(list_usable=lambda prompts, part, reject: prompts)
    backbone: Any = SimpleNamespace(transcriber=usable)

    def label(error: Exception) -> Labelled:
        sampler: Any = FailingSampler(error)
        return label_answers(
            backbone, sampler, reward, Rewards([]), task, SamplingParameters(1.0, 1.0, 8), log_rejected, ignore_share
        )

    failed = label(NotFinite("no probabilities"))
    assert (failed.pairs, failed.num_prompts) == ([], len(task.prompts)) and len(task.prompts) > 0
    assert failed.reason == "labelling failed: NotFinite: no probabilities"
    with pytest.raises(DatabaseError):
        label(DatabaseError("gone"))


def test_a_stop_while_answers_are_waited_for_is_no_failure_and_no_attempt(bench: Workbench) -> None:
    bench.send(40)
    learner = bench.start()
    real = learner._runner._training

    def label(task: Task) -> Labelled:
        bench.stopping.set()
        task.show(0.25, "")
        raise AssertionError("it went on")

    learner._runner._training = replace(real, label=label)
    with pytest.raises(RoundAborted):
        bench.run_all(learner)
    assert bench.board.read().round.progress == 0
    bench.stopping.clear()
    with bench.database.connect() as connection:
        assert rounds.find_open_round(connection).attempts == 0  # type: ignore[union-attr]
    bench.run_all(bench.start())
    assert bench.finished()[0]["metrics"]["num_labelled"] == 17


def test_a_stop_is_taken_for_no_failure_of_a_row_or_an_answer() -> None:
    def stop(*_: object) -> None:
        raise RoundAborted

    def blame(row: object, error: Exception) -> None:
        raise AssertionError(f"{row} was blamed")

    with pytest.raises(RoundAborted):
        run_isolated(["a", "b"], stop, blame)


def test_frozen_prompts_are_not_sampled_on(bench: Workbench) -> None:
    bench.frozen_prompts = frozenset({digest_prompt([{"role": "user", "content": "question 39"}])})
    bench.send(40)
    bench.run_all(bench.start())
    plan = bench.tasks[0].plan
    assert "event-39" not in plan.prompts and "event-38" in plan.prompts


def erase(bench: Workbench, event_id: str) -> None:
    gone = sa.delete(inbox.preferences).where(inbox.preferences.c.event_id == event_id)
    bench.writer.run(lambda connection: connection.execute(gone)).result()


def test_a_person_whose_prompt_was_sampled_on_is_traced_when_the_row_is_gone(bench: Workbench) -> None:
    bench.send(40)
    bench.run_all(bench.start())
    checkpoint = bench.finished()[0]["checkpoint"]
    source = bench.tasks[0].plan.prompts[0]
    erase(bench, source)
    with bench.database.connect() as connection:
        user = f"user-{source.removeprefix('event-')}"
        assert lineage.count_rows_of_user(connection, user) == {checkpoint: 2}  # the choice, and the pair on its prompt


def test_a_prompt_that_was_erased_meanwhile_has_the_round_prepared_anew(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.settings.trainer.dpo.max_new_pairs = 7  # of 40: the other prompts are of rows that it does not train on
    learner = bench.start()
    bench.send(40)
    kill_at("round.labelled", monkeypatch)
    with pytest.raises(Killed):
        bench.run_all(learner)
    plan = RoundFiles(bench.settings.rounds_dir, 1).read_plan()
    assert plan is not None and len(plan.new) == 7 and plan.max_labelled == 3
    bench.settings.trainer.dpo.max_new_pairs = 7
    source = plan.prompts[0]
    erase(bench, source)
    bench.run_all(bench.start())
    assert source not in bench.tasks[-1].plan.prompts
    assert bench.num_labellings == 2


def test_what_a_checkpoint_saw_as_a_prompt_alone_is_new_to_the_next_round(bench: Workbench) -> None:
    bench.send(3)

    def record(connection: sa.Connection) -> None:
        lineage.record_rows(connection, "c-1", ["event-0"], [], labelled={"labelled-1-0": "event-1"})
        lineage.record_rows(connection, "c-2", ["event-2"], [], role="prompt")

    bench.writer.run(record).result()
    with bench.database.connect() as connection:
        found = pool.read_pool(connection, policy="default", topic="t", taught=["c-1", "c-2"], edit_weight=0.0)
    assert (found.new, found.old) == (["event-1", "event-2"], ["event-0"])


def test_a_labelled_pair_that_training_cannot_use_is_not_said_to_be_learnt_from(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = bench.train

    def train_but_for_one(task: Task) -> dict[str, float]:
        bench.quarantine.add("labelled-1-3", "dpo", ValueError("not finite"))
        return train(task)

    monkeypatch.setattr(bench, "train", train_but_for_one)
    bench.send(40)
    bench.run_all(bench.start())
    with bench.database.connect() as connection:
        learnt = lineage.list_rows(connection, bench.finished()[0]["checkpoint"])
    assert "labelled-1-2" in learnt and "labelled-1-3" not in learnt

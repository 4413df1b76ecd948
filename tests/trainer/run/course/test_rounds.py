import json
import sys
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import sqlalchemy as sa
from safetensors.numpy import save_file
from sqlalchemy.exc import OperationalError

from feedback import inbox
from feedback.manifest import read_manifest
from tests.trainer.workbench import Killed
from trainer.learn.isolation import RoundAborted
from trainer.run import rounds
from trainer.run.course.files import RoundFiles
from trainer.run.course.task import Judged
from trainer.run.reward.keeper import updates
from trainer.run.rows import rows
from trainer.run.status.metrics import Curves
from trainer.run.status.server import start_status_server
from trainer.settings import TrainerSettings


def test_the_demo_preset_gives_way_to_what_is_written_down(monkeypatch):
    monkeypatch.setenv("PREFLOOP_TRAINER__DPO__EPOCHS", "2")
    section = TrainerSettings(preset="demo").trainer
    assert (section.round_every_preferences, section.dpo.lr, section.dpo.epochs) == (400, 1e-3, 2)


def test_checkpoint_zero_is_published_once_and_answers_as_the_base(bench):
    bench.start()
    bench.start()
    assert len(bench.names()) == 1
    manifest = read_manifest(bench.settings.checkpoints_dir / bench.names()[0])
    assert (manifest.number, manifest.parent, manifest.num_preferences) == (0, None, 0)
    assert bench.policy.adapters["policy"] == b"zero"


def test_a_round_publishes_a_child_of_the_stable_checkpoint(bench):
    learner = bench.start()
    bench.send(41)
    bench.run_all(learner)
    (row,) = bench.finished()
    manifest = read_manifest(bench.settings.checkpoints_dir / row["checkpoint"])
    assert (row["outcome"], row["reason"], row["trigger_choice_at"]) == ("published", "passed", 39.0)
    assert (manifest.number, manifest.parent) == (1, bench.gateway.known[0].id)
    assert manifest.settings["round"] == 1
    assert manifest.settings["last_preference_id"] == 41
    assert manifest.watermark == {}  # of the settings' topic: these records came by another
    assert manifest.num_preferences == len(bench.trained[0])
    assert [checkpoint.number for checkpoint in bench.gateway.known] == [0, 1]


def test_held_out_preferences_are_never_trained_on(bench):
    learner = bench.start()
    bench.send(80)
    judging = sa.update(inbox.preferences).where(inbox.preferences.c.id % 4 == 0).values(split="heldout")
    bench.writer.run(lambda connection: connection.execute(judging)).result()
    bench.run_all(learner)
    with bench.database.connect() as connection:
        held_out = {pair.event_id for pair in rows.load_held_out(connection, "default", 1000)}
    used = {event for new, replayed in bench.reward.seen for event in new + replayed}
    assert len(held_out) == 20
    assert not held_out & (used | set(bench.trained[0]))


def test_a_round_with_nothing_to_learn_is_stopped_with_its_reason_and_publishes_nothing(bench):
    bench.may_learn = False
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    (row,) = bench.finished()
    assert (row["outcome"], row["reason"], row["checkpoint"]) == ("stopped", "nothing to learn", None)
    assert bench.trained == []
    assert len(bench.names()) == 1
    assert bench.board.read().new_since_round == 0


def test_people_who_tie_always_stop_a_round(bench):
    bench.may_learn = False
    learner = bench.start()
    bench.send(80, preferred="tie")
    bench.run_all(learner)
    assert [row["outcome"] for row in bench.finished()] == ["stopped"]


def test_the_offline_gate_stops_a_round(bench):
    bench.verdict = Judged(ok=False, reason="facts fell", figures={"policy_facts": 0.5})
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    (row,) = bench.finished()
    assert (row["outcome"], row["reason"]) == ("stopped", "offline gate: facts fell")
    assert row["metrics"]["policy_facts"] == 0.5
    assert len(bench.names()) == 1


def test_a_round_that_fails_is_stopped_and_the_trainer_goes_on(bench):
    bench.error = RuntimeError("out of memory")
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    assert bench.finished()[0]["reason"] == "failed: RuntimeError: out of memory"
    bench.error = None
    bench.send(40)
    bench.run_all(learner)
    assert [row["outcome"] for row in bench.finished()] == ["stopped", "published"]


def test_preferences_of_a_stopped_round_are_still_new_to_the_next(bench):
    bench.verdict = Judged(ok=False, reason="no", figures={})
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    bench.verdict = Judged(ok=True, reason="yes", figures={})
    bench.send(40)
    bench.run_all(learner)
    assert set(bench.trained[0]) < set(bench.trained[1])


def test_no_round_begins_while_a_rollout_is_active(bench):
    learner = bench.start()
    bench.gateway.rollout = "r-1"
    bench.send(40)
    bench.run_all(learner)
    view = bench.board.read().round
    assert (view.state, view.reason) == ("waiting", "40 new decisive preferences; rollout r-1 is Progressing")
    bench.gateway.rollout = None
    bench.run_all(learner)
    assert len(bench.finished()) == 1


def test_no_round_begins_while_the_last_ones_checkpoint_waits_for_its_trial(bench):
    bench.gateway.status = "waiting"
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    bench.send(40)
    bench.run_all(learner)
    newest = bench.publisher.published[-1].manifest.id
    assert bench.board.read().round.reason == f"40 new decisive preferences; {newest} has not been on trial yet"
    bench.gateway.known.pop()  # the gateway has not heard of it yet: the same
    bench.run_all(learner)
    assert len(bench.finished()) == 1
    bench.gateway.status = "retired"
    bench.register()
    bench.run_all(learner)
    assert len(bench.finished()) == 2


def test_reward_updates_go_on_while_the_gateway_is_down_and_the_round_waits(bench):
    learner = bench.start()
    bench.gateway.is_down = True
    bench.send(60)
    bench.run_all(learner)
    assert bench.reward.version >= 2
    assert bench.board.read().round.state == "waiting"
    assert "connection refused" in bench.board.read().round.reason


def test_a_round_killed_in_training_begins_again_under_its_number(bench):
    learner = bench.start()
    bench.send(40)
    bench.error = Killed()
    with pytest.raises(Killed):
        bench.run_all(learner)
    assert bench.finished() == []
    bench.error = None
    bench.run_all(bench.start())
    (row,) = bench.finished()
    assert (row["number"], row["outcome"], row["trigger_choice_at"]) == (1, "published", 39.0)
    assert bench.trained[0] == bench.trained[1]
    assert len(bench.names()) == 2


def test_a_round_that_keeps_killing_the_trainer_is_given_up(bench):
    bench.send(40)
    bench.error = Killed()
    for _ in range(3):
        with pytest.raises(Killed):
            bench.run_all(bench.start())
    bench.run_all(bench.start())
    assert [row["reason"] for row in bench.finished()] == ["the trainer died in it 3 times without coming further"]


STEPS = [{"position": position} for position in (1, 2, 3, 4, 5)]
ITERATIONS = [
    {"iteration": i, "position": position} for i, position in ((0, 3), (1, 0), (1, 2), (2, 0), (2, 1))
]  # of PPO


@pytest.mark.parametrize("memos", [STEPS, ITERATIONS])
def test_deaths_count_only_while_a_round_comes_no_further(bench, memos):
    """Five deaths with progress between them, then three at the same step."""
    bench.send(40)
    bench.error = Killed()
    learner, files = bench.start(), RoundFiles(bench.settings.rounds_dir, 1)
    for memo in [*memos, *memos[-1:] * 3]:
        assert bench.finished() == []
        with pytest.raises(Killed):
            bench.run_all(learner)
        files.snapshots.mkdir(exist_ok=True)
        about = json.dumps({"step_number": 0, "memo": memo})
        save_file({"x": np.zeros(1)}, files.snapshots / "snapshot.safetensors", metadata={"loop": about})
        learner = bench.start()
    bench.run_all(learner)
    assert [row["reason"] for row in bench.finished()] == ["the trainer died in it 3 times without coming further"]


def test_a_kill_between_rename_and_record_publishes_once(bench):
    learner = bench.start()
    bench.send(40)
    learner._closer.close = raise_killed
    with pytest.raises(Killed):
        bench.run_all(learner)
    assert len(bench.names()) == 2
    bench.run_all(bench.start())
    (row,) = bench.finished()
    assert (row["outcome"], row["reason"], row["checkpoint"]) == (
        "published",
        "published before its record closed",
        bench.names()[1],
    )
    assert len(bench.names()) == 2


def raise_killed(*_args) -> None:
    raise Killed


def test_a_clean_stop_aborts_the_round_and_does_not_count_as_an_attempt(bench):
    learner = bench.start()
    bench.send(40)
    bench.stopping.set()
    with pytest.raises(RoundAborted):
        bench.run_all(learner)
    bench.stopping.clear()
    with bench.database.connect() as connection:
        assert rounds.find_open_round(connection).attempts == 0
    bench.run_all(bench.start())
    assert [row["outcome"] for row in bench.finished()] == ["published"]


def test_numbers_do_not_collide_with_checkpoints_that_only_the_gateway_knows(bench):
    bench.start()
    known = bench.gateway.known[0]
    bench.gateway.known.append(type(known)("c-000006-aaaaaaaaaaaa", 6, "elsewhere", "retired"))
    bench.send(40)
    bench.run_all(bench.start())
    assert bench.names()[1].startswith("c-000007-")


def test_each_pair_is_new_once_and_replayed_at_most_three_times(bench):
    bench.may_learn = False
    learner = bench.start()
    for _ in range(12):
        bench.send(16)
        bench.run_all(learner)
    new = [event for batch, _ in bench.reward.seen for event in batch]
    replayed = [event for _, batch in bench.reward.seen for event in batch]
    assert len(new) == len(set(new))
    assert replayed
    assert max(replayed.count(event) for event in set(replayed)) <= 3


def test_a_kill_between_saving_the_reward_model_and_marking_its_pairs_uses_them_once(bench):
    learner = bench.start()
    bench.send(30)
    learner._keeper._mark = raise_killed_in_writer
    with pytest.raises(RuntimeError):
        learner.step()
    first = bench.reward.seen[0][0]
    bench.run_all(bench.start())
    assert bench.reward.version >= 1
    assert not set(first) & {event for batch, _ in bench.reward.seen for event in batch}


def raise_killed_in_writer(*_args) -> None:
    raise RuntimeError("killed")


def test_a_database_that_fails_to_mark_an_update_makes_no_pair_new_twice(bench):
    learner = bench.start()
    bench.send(60)
    mark, learner._keeper._mark = learner._keeper._mark, raise_killed_in_writer
    with pytest.raises(RuntimeError):
        learner._keeper.update()
    learner._keeper._mark = mark
    learner._keeper.update()  # by the same process: the model in memory has learnt from the first batch
    new = [event for batch, _ in bench.reward.seen for event in batch]
    assert len(bench.reward.seen) == 2
    assert len(new) == len(set(new))
    with bench.database.connect() as connection:
        assert [row.version for row in connection.execute(updates.select())] == [1, 2]


def test_a_round_whose_record_could_not_be_closed_is_not_trained_again(bench):
    learner = bench.start()
    bench.send(40)
    close, learner._closer.close = learner._closer.close, raise_killed_in_writer
    with pytest.raises(RuntimeError):
        bench.run_all(learner)
    learner._closer.close = close
    bench.run_all(learner)
    assert len(bench.trained) == 1
    assert [row["outcome"] for row in bench.finished()] == ["published"]


def test_a_database_that_goes_away_in_a_round_leaves_it_open(bench):
    learner = bench.start()
    bench.send(40)
    bench.error = OperationalError("SELECT", {}, Exception("server closed the connection"))
    with pytest.raises(OperationalError):
        bench.run_all(learner)
    assert bench.finished() == []
    bench.error = None
    bench.run_all(learner)
    assert [row["outcome"] for row in bench.finished()] == ["published"]


def test_the_status_page_says_what_became_of_every_choice(bench):
    learner = bench.start()
    bench.send(30)
    bench.send(3, preferred="skip")
    bench.run_all(learner)
    uses = bench.board.read().uses
    assert uses["skip"] == 3
    assert uses["trained"] == 16
    assert sum(uses.values()) == 33


def test_a_lost_reward_model_learns_from_everything_again(bench):
    learner = bench.start()
    bench.send(30)
    bench.run_all(learner)
    version = bench.reward.version
    for state in bench.settings.reward_dir.iterdir():
        for file in state.iterdir():
            file.unlink()
        state.rmdir()
    bench.run_all(bench.start())
    assert bench.reward.version == version == 1


def test_the_status_page_says_why_it_does_not_train(bench):
    learner = bench.start()
    bench.send(5)
    bench.run_all(learner)
    server = start_status_server("127.0.0.1", 0, bench.board, bench.metrics.registry)
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        status = json.load(urllib.request.urlopen(f"{url}/status", timeout=5))
        text = urllib.request.urlopen(f"{url}/metrics", timeout=5).read().decode()
        assert urllib.request.urlopen(f"{url}/livez", timeout=5).status == 200
    finally:
        server.shutdown()
    assert status["round"]["reason"] == "5 of 40 new decisive preferences"
    assert (status["preferences"], status["new_since_round"], status["round_every"]) == (5, 5, 40)
    assert "prefloop_preferences 5.0" in text and "process_cpu_seconds_total" in text


def test_curves_go_to_weights_and_biases_if_a_project_is_named_and_it_is_installed(tmp_path, monkeypatch):
    logged = []
    run = SimpleNamespace(log=logged.append, finish=lambda: logged.append("finished"))
    wandb = SimpleNamespace(init=lambda **given: logged.append(given["project"]) or run)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    curves = Curves(tmp_path, "my-project")
    curves.add("dpo", {"loss": 0.5, "note": "no number"}, 7)
    curves.close()
    assert logged == ["my-project", {"dpo/loss": 0.5, "dpo/step": 7}, "finished"]
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed: TensorBoard goes on alone
    curves = Curves(tmp_path, "my-project")
    curves.add("dpo", {"loss": 0.5}, 8)
    curves.close()


def test_curves_are_written_for_tensorboard(tmp_path):
    curves = Curves(tmp_path)
    curves.add("dpo", {"loss": 0.5, "note": "no number"}, 1)
    curves.close()
    assert list(tmp_path.glob("events.out.tfevents.*"))

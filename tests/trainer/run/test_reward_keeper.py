"""The reward model's saved states: a damaged one is set aside, never deleted, and the one before it is taken."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tests.trainer.learn.test_reward import KIND, make_pairs
from tests.trainer.tiny import ask, build_tiny_stack
from tests.trainer.workbench import Workbench
from trainer.learn.reward import RewardModel
from trainer.model.stack import AdapterMismatch
from trainer.run.reward_keeper import list_states
from trainer.settings import TrainerSettings


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
    return sorted(path.name for path in bench.settings.reward_dir.iterdir())


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
    assert bench.reward.version == 1
    assert not second & count_new(bench).keys()  # nobody knows that they were lost; none is learnt from twice


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


@pytest.mark.parametrize(
    "damage", ["no version", "heads missing", "heads of another shape", "heads not finite", "adapter"]
)
def test_a_load_that_fails_changes_nothing(damage: str, tmp_path: Path) -> None:
    saved = RewardModel(build_tiny_stack())
    saved.update(make_pairs(16), [])
    saved.save(tmp_path)
    heads, weights = tmp_path / "heads.safetensors", tmp_path / "adapter_model.safetensors"
    state = load_file(heads)
    if damage == "no version":
        (tmp_path / "reward.json").write_text("{}")
    elif damage == "heads missing":
        heads.unlink()
    elif damage == "heads of another shape":
        save_file({**state, "linear.weight": torch.zeros(2, 2)}, heads)
    elif damage == "heads not finite":
        save_file({**state, "first_place": torch.tensor(float("nan"))}, heads)
    else:
        weights.write_bytes(weights.read_bytes()[:100])
    fresh = RewardModel(build_tiny_stack())
    before = fresh.score([ask()], [KIND]).mean
    with pytest.raises((OSError, KeyError, AdapterMismatch, SafetensorError)):
        fresh.load(tmp_path)
    assert torch.equal(fresh.score([ask()], [KIND]).mean, before)
    assert (fresh.version, fresh.foreseen) == (0, (0, 0))

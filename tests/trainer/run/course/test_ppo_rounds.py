"""PPO rounds with a tiny real model: killed in any phase they end in the same bits, and leave nothing on the engine.

Each of eight seeds is killed in one phase; PREFLOOP_RESUME_SEEDS=30 plays thirty, and kills each in every phase.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.trainer.learn.sampling.fake_engine import FakeEngine, run_fake_engine
from tests.trainer.real import RealWorkbench, die_at
from tests.trainer.tiny import build_tiny_tokenizer
from tests.trainer.workbench import Killed
from trainer.learn.ppo import run as ppo
from trainer.run import rounds
from trainer.run.course import round
from trainer.run.publish import lineage
from trainer.sections.reward import CheckerSection, RewardsSection
from trainer.settings import TrainerSettings

NUM_SEEDS = int(os.environ.get("PREFLOOP_RESUME_SEEDS", "8"))
OFTEN = {"round.step": 4, "ppo.sampled": 2, "ppo.measured": 2, "ppo.learnt": 2}  # how often a round passes a point
ONCE = ("round.prepared", "round.trained", "round.judged", "round.published")
POINTS = [*OFTEN, *ONCE]
PPO = {"iterations": 2, "prompts_per_iteration": 4, "samples_per_prompt": 2, "epochs": 1, "minibatches": 2}


def make_bench(directory: Path, seed: int, max_answer_ratio: float = 2.0, **sampling: Any) -> RealWorkbench:
    trainer = {
        "seed": seed,
        "round": "ppo",
        "round_every_preferences": 24,
        "round_every_minutes": 0,
        "snapshot_every_steps": 1,
        "reward": {"update_every_preferences": 16, "head_steps": 2},
        "ppo": {**PPO, "max_tokens": 4, "max_approximate_kl": 1.0, "max_answer_ratio": max_answer_ratio},
        "gate": {"max_prompts": 2, "max_train_prompts": 2, "max_samples": 4, "max_tokens": 4},
        "sampling": {"pace_every_s": 0.05, "retry_after_s": 0.0, **sampling},
    }
    return RealWorkbench(TrainerSettings(state_dir=directory, base_model=str(directory / "base"), trainer=trainer))


def kill(point: str, nth: int, monkeypatch: pytest.MonkeyPatch, on_kill: Callable[[], None] = lambda: None) -> None:
    """Die the nth time that the point is passed, once."""
    reach = die_at(point, nth, on_kill)
    for module in (round, ppo):
        monkeypatch.setattr(module, "reach", reach)


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_a_kill_in_any_phase_changes_no_bit_of_what_is_published(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_bench(tmp_path / "whole", seed).play("ppo")
    rng = random.Random(seed)
    for point in POINTS if NUM_SEEDS > 10 else [POINTS[seed % len(POINTS)]]:
        bench = make_bench(tmp_path / point, seed)
        kill(point, rng.randint(1, OFTEN.get(point, 1)), monkeypatch)
        assert bench.play("ppo") == expected, point
        assert all(rows == bench.trained[0] for rows in bench.trained)
        assert len(bench.trained) == (2 if point in OFTEN else 1)
        assert not list(bench.settings.rounds_dir.iterdir())


def test_a_round_that_goes_on_keeps_the_reward_and_the_sampling_it_was_planned_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_bench(tmp_path / "whole", 0).play("ppo")
    bench = make_bench(tmp_path / "changed", 0)
    checker = CheckerSection(name="late", kind="json", weight=5.0)

    def change_settings() -> None:
        bench.settings.trainer.rewards = RewardsSection(preference_weight=0.0, checkers=[checker])
        bench.settings.trainer.gate.temperature, bench.settings.trainer.gate.max_tokens = 2.0, 2

    kill("ppo.learnt", 1, monkeypatch, change_settings)
    assert bench.play("ppo") == expected


def test_a_ppo_round_asks_prompts_and_says_what_it_was_made_of(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, 0)
    learner = bench.start()
    bench.send(24)
    bench.run_all(learner)
    [row] = bench.finished()
    [task] = bench.tasks
    assert (task.plan.kind, task.plan.replayed, task.plan.weights) == ("ppo", [], [1.0] * len(task.plan.new))
    assert 0 < len(task.plan.new) <= 8  # two iterations of four prompts
    assert task.plan.settings.keys() == {"ppo", "rewards", "sampling"}
    assert row["metrics"]["num_answers"] == 16 and 0 < row["metrics"]["share_generating"] < 1
    assert row["phases"].keys() >= {"preparing", "sampling", "training", "judging", "publishing"}
    with bench.database.connect() as connection:
        learnt = connection.execute(sa.select(lineage.checkpoint_rows.c.event_id, lineage.checkpoint_rows.c.role))
        roles = {each.event_id: each.role for each in learnt}
        details = rounds.find_round(connection, 1)["details"]
    assert roles == dict.fromkeys(task.plan.new, "prompt")
    assert details["num_new"] == len(task.plan.new)
    page = (bench.settings.checkpoints_dir / "reports" / f"{row['checkpoint']}.html").read_text()
    assert "Reward of its own answers" in page
    bench.writer.close()


# Beside an engine


@pytest.fixture
def engine() -> Iterator[FakeEngine]:
    tokenizer = build_tiny_tokenizer()
    said = list(tokenizer("It is Paris.", add_special_tokens=False).input_ids)[:3]
    with run_fake_engine(FakeEngine(said, tokenizer.eos_token_id)) as running:
        yield running


def silence(bench: RealWorkbench) -> None:
    """A dead process's threads ask nothing more, and unload nothing."""
    for engine in bench.learning.engines:
        engine.url = "http://127.0.0.1:1"


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_a_trainer_that_is_killed_leaves_nothing_on_the_engine_once_it_is_back(
    tmp_path: Path, seed: int, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(seed)
    for point in POINTS if NUM_SEEDS > 10 else [POINTS[seed % len(POINTS)]]:
        bench = make_bench(tmp_path / point, seed, 1e9, engines=[engine.url])  # what it says is never likely
        kill(point, rng.randint(1, OFTEN.get(point, 1)), monkeypatch, lambda bench=bench: silence(bench))
        learner = bench.start()
        bench.send(24)
        with pytest.raises(Killed):
            bench.run_all(learner)
        engine.loaded["t-left"] = "by an iteration that died"
        learner = bench.start()
        assert "t-left" not in engine.loaded  # also where nothing is left to sample
        bench.run_all(learner)
        assert [row["outcome"] for row in bench.finished()] == ["published"]
        assert engine.loaded == {}
        assert not list((bench.settings.state_dir / "sampling").glob("t-*"))
        bench.writer.close()


def test_a_trainer_that_samples_rounds_itself_asks_the_engine_for_the_gate_alone(
    tmp_path: Path, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make_bench(tmp_path, 0, engines=[engine.url], rounds_by="trainer")
    asked: list[int] = []
    monkeypatch.setattr(
        round, "reach", lambda point: asked.append(len(engine.asked)) if point == "round.trained" else None
    )
    bench.play("ppo")
    assert asked == [0]
    assert engine.asked

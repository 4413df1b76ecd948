"""Rounds with a tiny real model: killed in any phase they end in the same bits, and nothing is trained twice.

Each of ten seeds is killed in one phase; PREFLOOP_RESUME_SEEDS=50 plays fifty, and kills each in every phase.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import select

from feedback import inbox
from feedback.events import encode_event, new_event
from feedback.log import NewRecord
from tests.trainer.fakes import make_choice
from tests.trainer.real import RealWorkbench, die_at
from trainer.judge.gate import Verdict
from trainer.judge.judge import judge_checkpoint
from trainer.judge.ladder import read_rung
from trainer.learn.dpo import train_preferences
from trainer.learn.sampling.sampler import SamplingParameters
from trainer.learn.worker import Job
from trainer.run import rounds
from trainer.run.course import judging, round
from trainer.run.course import training as round_training
from trainer.run.publish import lineage
from trainer.sections.training import DpoSection
from trainer.settings import TrainerSettings

NUM_SEEDS = int(os.environ.get("PREFLOOP_RESUME_SEEDS", "10"))
POINTS = ["round.prepared", "round.step", "round.trained", "round.judged", "round.published"]


def make_bench(directory: Path, seed: int) -> RealWorkbench:
    trainer = {
        "seed": seed,
        "round_every_preferences": 24,
        "round_every_minutes": 0,
        "snapshot_every_steps": 2,
        "reward": {"update_every_preferences": 16, "head_steps": 2},
        "gate": {"max_prompts": 2, "max_samples": 4, "max_tokens": 4},
    }
    return RealWorkbench(TrainerSettings(state_dir=directory, base_model=str(directory / "base"), trainer=trainer))


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_a_kill_in_any_phase_changes_no_bit_of_what_is_published(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = make_bench(tmp_path / "whole", seed).play("dpo")
    rng = random.Random(seed)
    for point in POINTS if NUM_SEEDS > 10 else [POINTS[seed % len(POINTS)]]:
        bench = make_bench(tmp_path / point, seed)
        monkeypatch.setattr(round, "reach", die_at(point, rng.randint(1, 3) if point == "round.step" else 1))
        assert bench.play("dpo") == expected, point
        assert all(rows == bench.trained[0] for rows in bench.trained)
        assert len(bench.trained) == (2 if point == "round.step" else 1)
        assert not list(bench.settings.rounds_dir.iterdir())


def let_pass(*arguments: Any, **more: Any) -> Verdict:
    """The gate's figures, and a verdict that opens it."""
    return replace(judge_checkpoint(*arguments, **more), ok=True, reason="passed")


def test_a_round_of_real_parts_leaves_report_lineage_and_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "judge_checkpoint", let_pass)
    bench = make_bench(tmp_path, 0)
    fact = {"messages": [{"role": "user", "content": "capital?"}], "fact": "Paris"}
    bench.settings.frozen_set.write_text(json.dumps(fact) + "\n")
    learner = bench.start()
    bench.send(24)
    bench.run_all(learner)
    [row] = bench.finished()
    assert row["metrics"]["num_steps"] == 3 and "log_ratio_abs" in row["metrics"]
    with bench.database.connect() as connection:
        assert lineage.list_rows(connection, row["checkpoint"]) == sorted(bench.trained[0])
        used = list(connection.execute(select(inbox.preferences.c.used_as_new)).scalars())
    assert used == [1] * 24
    page = (bench.settings.checkpoints_dir / "reports" / f"{row['checkpoint']}.html").read_text()
    assert "<svg" in page and "Where the time went" in page
    assert list(bench.settings.references_dir.glob("*.safetensors"))
    assert bench.reward.version >= 1
    with bench.database.connect() as connection:
        details = rounds.find_round(connection, 1)["details"]
    assert [part["name"] for part in details["reward_parts"]] == ["sum", "preference", "length", "harm"]
    assert row["reward_parts"] == details["reward_parts"]
    assert "part by part" in page and "policy_reward_harm" in row["metrics"]
    assert "reward_accuracy" in row["metrics"]
    zero = bench.publisher.published[0].manifest.id
    rung = read_rung(details["rung"])
    assert (rung.checkpoint, rung.first, rung.judge) == (row["checkpoint"], zero, "reward")
    assert rung.win_rate.n > 0 and f"beside {zero}" in page
    bench.writer.close()


def make_sampled_record(number: int) -> NewRecord:
    """A choice between answers of which it is known how they were sampled."""
    choice = make_choice(number)
    answers = {
        place: msgspec.structs.replace(getattr(choice.comparison, place), temperature=0.3, top_p=0.8, max_tokens=3)
        for place in ("first", "second")
    }
    choice = msgspec.structs.replace(choice, comparison=msgspec.structs.replace(choice.comparison, **answers))
    event = new_event(choice, source="test", now=float(number), event_id=f"event-{number}")
    headers, body = encode_event(event)
    return NewRecord(key=event.key.encode(), value=body, headers=headers)


def test_where_nothing_is_held_out_the_newest_prompts_that_were_trained_on_are_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    parameters: list[SamplingParameters] = []

    def judge(*arguments: Any, **more: Any) -> Verdict:
        asked.append([prompt.messages[-1]["content"] for prompt in more["heldout"]])
        parameters.append(more["parameters"])
        return Verdict(True, "passed")

    monkeypatch.setattr(judging, "judge_checkpoint", judge)
    bench = make_bench(tmp_path, 0)
    bench.settings.trainer.gate.max_train_prompts = 2
    bench.settings.trainer.gate.ladder = False
    learner = bench.start()
    bench.send_records([make_sampled_record(number) for number in range(24)])
    bench.run_all(learner)
    [prompts] = asked
    assert len(set(prompts)) == 2  # the newest last
    assert parameters == [SamplingParameters(temperature=0.3, top_p=0.8, max_tokens=3)]
    bench.writer.close()


def test_workers_are_given_all_that_a_round_is_made_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they train from the job alone is published, and is what one process trains."""
    alone = make_bench(tmp_path / "alone", 0).play("dpo")
    bench = make_bench(tmp_path / "shared", 0)
    bench.settings.trainer.num_processes = 2
    jobs: list[Job] = []

    def train(job: Job, directory: Path, num_processes: int, nodes: None, **functions: Any) -> dict[str, float]:
        jobs.append(msgspec.json.decode(msgspec.json.encode(job), type=Job))
        assert num_processes == 2 and job.snapshots == "../snapshots" and directory.name == "workers"
        return train_preferences(
            bench.backbone,
            jobs[0].preferences,
            DpoSection.model_validate(jobs[0].section),
            seed=jobs[0].seed,
            progress=functions["progress"],
        )

    monkeypatch.setattr(round_training, "train_in_processes", train)
    assert bench.play("dpo") == alone
    (job,) = jobs
    assert (job.kind, job.device, job.base) == ("dpo", "cpu", bench.settings.base)
    assert job.section["lr"] == 1e-3 and job.model["lora_rank"] == 16

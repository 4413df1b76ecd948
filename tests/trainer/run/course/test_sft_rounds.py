"""SFT rounds from demonstrations with a tiny real model; a promoted one is the reference of later rounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from feedback import inbox
from feedback.events import Demonstration, encode_event, new_event
from feedback.log import NewRecord
from feedback.manifest import read_manifest
from tests.trainer.real import RealWorkbench
from trainer.run.rows import signal_queries
from trainer.settings import TrainerSettings


def make_bench(directory: Path, **trainer: Any) -> RealWorkbench:
    values = {
        "round_every_preferences": 16,
        "round_every_minutes": 0,
        "sft_every_demonstrations": 8,
        "reward": {"update_every_preferences": 16, "head_steps": 2},
        "gate": {"max_prompts": 2, "max_samples": 4, "max_tokens": 4},
    }
    settings = TrainerSettings(state_dir=directory, base_model=str(directory / "base"), trainer=values | trainer)
    return RealWorkbench(settings)


def make_demonstration(number: int) -> NewRecord:
    body = Demonstration(
        id=f"demo-{number}",
        messages=[{"role": "user", "content": f"question {number}"}],
        answer=f"Gladly: answer {number}.",
        channel="api",
        created_at=float(number),
        policy="default",
    )
    event = new_event(body, source="test", now=float(number), event_id=f"demo-event-{number}")
    headers, value = encode_event(event)
    return NewRecord(key=event.key.encode(), value=value, headers=headers)


def test_demonstrations_make_an_sft_round_once_and_its_checkpoint_is_what_later_rounds_refer_to(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, round="sft")
    learner = bench.start()
    bench.send_records([make_demonstration(number) for number in range(8)])
    in_training = sa.update(inbox.demonstrations).values(split="train")
    bench.writer.run(lambda connection: connection.execute(in_training)).result()
    bench.run_all(learner)
    [row] = bench.finished()
    assert (row["kind"], row["outcome"]) == ("sft", "published"), row["reason"]
    assert bench.trained == [[f"demo-event-{number}" for number in range(8)]]
    sft = row["checkpoint"]
    assert read_manifest(bench.settings.checkpoints_dir / sft).settings["kind"] == "sft"
    assert bench.board.read().round.reason == "0 of 8 new demonstrations"

    bench.gateway.known.insert(0, bench.gateway.known.pop())  # promoted
    bench.settings.trainer.round = "dpo"
    learner = bench.start()
    bench.send(16)
    bench.run_all(learner)
    later = bench.tasks[1]
    assert (later.plan.kind, later.plan.reference, later.plan.parent) == ("dpo", sft, sft)
    assert later.reference == bench.settings.checkpoints_dir / sft
    assert [each["outcome"] for each in bench.finished()] == ["published", "published"]
    bench.writer.close()


def test_an_sft_round_that_was_stopped_is_not_due_again_for_the_same_demonstrations(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, round="sft")
    bench.lets_pass = False
    learner = bench.start()
    bench.send_records([make_demonstration(number) for number in range(8)])
    in_training = sa.update(inbox.demonstrations).values(split="train")
    bench.writer.run(lambda connection: connection.execute(in_training)).result()
    for _ in range(5):
        learner.step()
    assert [each["outcome"] for each in bench.finished()] == ["stopped"]
    bench.writer.close()


def test_held_out_demonstrations_judge_a_round(tmp_path: Path) -> None:
    bench = make_bench(tmp_path, round="sft")
    learner = bench.start()
    bench.send_records([make_demonstration(number) for number in range(10)])
    number = sa.func.substr(inbox.demonstrations.c.event_id, 12)
    for split, is_of in (("train", number < "8"), ("heldout", number >= "8")):
        bench.writer.run(
            lambda connection, split=split, is_of=is_of: connection.execute(
                sa.update(inbox.demonstrations).where(is_of).values(split=split)
            )
        ).result()
    bench.run_all(learner)
    [judged] = bench.said
    assert "policy_rouge_l" in judged.figures and "demonstrations not available" not in judged.reason
    assert judged.figures["likelihood_change"] != 0
    bench.writer.close()


def test_the_first_demonstrations_are_held_out_and_the_gate_judges_by_them(tmp_path: Path) -> None:
    """With its own gate, before anybody chose anything: the reward model says 0 of everything."""
    bench = make_bench(tmp_path, round="sft", sft_every_demonstrations=50)
    bench.lets_pass = False
    learner = bench.start()
    bench.send_records([make_demonstration(number) for number in range(64)])
    with bench.database.connect() as connection:
        held_out = signal_queries.load_demonstrations(connection, "default", split="heldout")
    assert 1 < len(held_out) < 16
    bench.run_all(learner)
    [judged] = bench.said
    assert judged.figures["reward_change"] == pytest.approx(0, abs=1e-6)
    assert judged.figures["likelihood_change"] > 0 and "reward gain" not in judged.reason
    bench.writer.close()

"""Which checkpoints learnt from which rows, and from whom."""

from __future__ import annotations

import shutil
from pathlib import Path

import sqlalchemy as sa

from feedback import inbox
from feedback.manifest import Manifest, Probe
from tests.trainer.workbench import Workbench
from trainer.run.publish import lineage
from trainer.run.publish.checkpoints import Published
from trainer.run.publish.lineage import Learnt
from trainer.run.report.archive import RoundArchive


def make(name: str, parent: str | None = None, **settings: object) -> Published:
    probe = Probe(prompt_token_ids=[], logprobs=[], base_logprobs=[])
    manifest = Manifest(
        id=name, number=0, parent=parent, base_digest="b", rank=16, digest=name, files={}, created_at=0.0, probe=probe,
        settings=settings,
    )  # fmt: skip
    return Published(manifest, Path(name))


ZERO, ONE, TWO = make("c-0"), make("c-1", "c-0", start="stable"), make("c-2", "c-1", start="stable")
RESTART = make("c-3", "c-2", start="base")
FOUR = make("c-4", "c-3", start="stable")
ALL = [ZERO, ONE, TWO, RESTART, FOUR]


def load(connection: sa.Connection, published: list[Published]) -> dict[str, lineage.Origin]:
    return lineage.load_origins(connection, published)


def find_reference(connection: sa.Connection, checkpoint: str, published: list[Published]) -> str | None:
    here = [each.manifest.id for each in published]
    return lineage.find_reference(checkpoint, load(connection, published), here)


def test_a_checkpoint_was_taught_by_what_it_began_from_until_a_round_began_from_the_base(
    connection: sa.Connection,
) -> None:
    origins = load(connection, ALL)
    assert lineage.list_taught_by("c-2", origins) == ["c-2", "c-1", "c-0"]
    assert lineage.list_taught_by("c-4", origins) == ["c-4", "c-3"]
    assert lineage.list_ancestry("c-4", origins) == ["c-4", "c-3", "c-2", "c-1", "c-0"]


def test_a_person_is_traced_through_descendants_but_not_past_a_restart(connection: sa.Connection) -> None:
    own = {"c-1": 5, "c-4": 2}
    traced = lineage.trace_learnt(own, load(connection, ALL))
    assert traced == [Learnt("c-1", 5, 0), Learnt("c-2", 0, 1), Learnt("c-4", 2, 0)]


def test_a_checkpoint_of_which_nothing_is_known_is_still_named(connection: sa.Connection) -> None:
    assert lineage.trace_learnt({"c-9": 1}, load(connection, ALL)) == [Learnt("c-9", 1, 0)]


def test_the_newest_promoted_sft_checkpoint_is_the_reference(connection: sa.Connection) -> None:
    sft = make("c-5", "c-4", kind="sft")
    rejected = make("c-6", "c-5", kind="sft")  # nothing that serves descends from it
    after = make("c-7", "c-5", kind="dpo")
    everything = [*ALL, sft, rejected, after]
    assert find_reference(connection, "c-7", everything) == "c-5"
    assert find_reference(connection, "c-5", everything) == "c-5"
    assert find_reference(connection, "c-4", everything) is None


def test_a_restart_from_the_reference_was_taught_by_it(connection: sa.Connection) -> None:
    sft = make("c-5", "c-4", kind="sft", start="stable")
    later = make("c-6", "c-5", start="stable")
    restart = make("c-7", "c-6", start="reference", reference="c-5")
    origins = load(connection, [*ALL, sft, later, restart])
    assert lineage.list_taught_by("c-7", origins) == ["c-7", "c-5", "c-4", "c-3"]


def test_what_a_checkpoint_began_from_is_known_when_directories_of_its_ancestors_are_gone(bench: Workbench) -> None:
    bench.settings.trainer.dpo.replay_share = 0.0
    learner = bench.start()
    chain = []
    for _ in range(3):
        bench.send(40)
        learner.step()
        bench.gateway.known.insert(0, bench.gateway.known.pop())  # promoted
        chain.append(bench.gateway.known[0].id)
    first = bench.tasks[0].plan.event_ids
    for gone in chain[:2]:
        shutil.rmtree(bench.settings.checkpoints_dir / gone)
    traced = RoundArchive(bench.database, bench.settings.checkpoints_dir).trace_user(
        f"user-{first[0].removeprefix('event-')}"
    )
    assert [(each["checkpoint"], each["num_rows"], each["num_ancestors"]) for each in traced] == [
        (chain[0], 1, 0),
        (chain[1], 0, 1),
        (chain[2], 0, 1),
    ]

    bench.settings.trainer.dpo.replay_share = 0.5
    learner = bench.start()
    bench.send(40)
    learner.step()
    plan = bench.tasks[3].plan
    assert not set(plan.new) & {row for task in bench.tasks[:3] for row in task.plan.event_ids}
    assert set(plan.replayed) & set(first)


def test_published_rounds_say_which_of_a_persons_rows_they_learnt_from(bench: Workbench) -> None:
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    checkpoint = bench.finished()[0]["checkpoint"]
    with bench.database.connect() as connection:
        rows = lineage.list_rows(connection, checkpoint)
        user = f"user-{rows[0].removeprefix('event-')}"
        assert rows == sorted(bench.trained[0])
        assert lineage.count_rows_of_user(connection, user) == {checkpoint: 1}
        assert lineage.count_rows_of_user(connection, "nobody") == {}


def test_whom_a_checkpoint_learnt_from_is_known_when_the_rows_are_gone_and_the_reward_model_forgets_them(
    bench: Workbench,
) -> None:
    learner = bench.start()
    bench.send(40)
    bench.run_all(learner)
    checkpoint, erased = bench.finished()[0]["checkpoint"], bench.trained[0][:2]
    is_erased = inbox.preferences.c.event_id.in_(erased)
    bench.writer.run(lambda connection: connection.execute(sa.delete(inbox.preferences).where(is_erased))).result()
    with bench.database.connect() as connection:
        for event_id in erased:
            user = f"user-{event_id.removeprefix('event-')}"
            assert lineage.count_rows_of_user(connection, user) == {checkpoint: 1}
    assert bench.reward.forgotten == []
    bench.send(16)
    bench.run_all(learner)
    assert sorted(bench.reward.forgotten) == sorted(erased)
    bench.run_all(learner)
    assert len(bench.reward.forgotten) == 2

"""The auditor goes on from its saved state, learns every row once, and forgets those that are erased."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from feedback import inbox
from tests.trainer.tiny import build_tiny_backbone
from tests.trainer.workbench import Workbench
from trainer.judge.auditor import Auditor
from trainer.judge.frozen import digest_prompt
from trainer.model.backbone import Backbone
from trainer.run.reward.auditor_keeper import AuditorKeeper
from trainer.run.reward.states import list_states
from trainer.sections.reward import RewardSection
from trainer.settings import TrainerSettings
from trainer.text.rejected import log_rejected


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    built = Workbench(TrainerSettings(state_dir=tmp_path))
    built.send(40)
    for_auditor = sa.update(inbox.preferences).values(split="auditor")
    built.writer.run(lambda connection: connection.execute(for_auditor)).result()
    yield built
    built.writer.close()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_tiny_backbone()


def start(bench: Workbench, backbone: Backbone) -> AuditorKeeper:
    """As a process does that starts."""
    auditor = Auditor(backbone, RewardSection(head_steps=1, adapter_pairs=0))
    return AuditorKeeper(auditor, bench.database, bench.settings.auditor_dir, "default", log_rejected)


def test_a_restart_goes_on_from_the_state_and_learns_nothing_twice(bench: Workbench, backbone: Backbone) -> None:
    first = start(bench, backbone)
    first.teach()
    assert first.auditor.version == 2  # two whole chunks of 16, and 8 wait
    known = first.auditor.list_known()
    again = start(bench, backbone)
    again.teach()
    assert (again.auditor.version, again.auditor.list_known()) == (2, known)
    assert again.auditor.record.state() == first.auditor.record.state()
    shutil.rmtree(bench.settings.auditor_dir)
    anew = start(bench, backbone)
    anew.teach()
    assert anew.auditor.list_known() == known


def test_a_state_that_does_not_load_is_set_aside_and_the_rows_are_learnt_again(
    bench: Workbench, backbone: Backbone
) -> None:
    start(bench, backbone).teach()
    [state] = list_states(bench.settings.auditor_dir)
    (state / "reward.safetensors").write_bytes(b"broken")
    again = start(bench, backbone)
    again.teach()
    assert again.auditor.version == 2
    assert len(list(bench.settings.auditor_dir.glob("unreadable-*"))) == 1


def test_it_learns_from_ties_too(bench: Workbench, backbone: Backbone) -> None:
    are_ties = sa.update(inbox.preferences).values(preferred="tie").where(inbox.preferences.c.id <= 4)
    bench.writer.run(lambda connection: connection.execute(are_ties)).result()
    keeper = start(bench, backbone)
    keeper.teach()
    assert {"event-0", "event-3", "event-31"} <= set(keeper.auditor.list_known())


def test_what_a_frozen_set_asks_teaches_it_nothing(bench: Workbench, backbone: Backbone) -> None:
    auditor = Auditor(backbone, RewardSection(head_steps=1, adapter_pairs=0))
    frozen = frozenset({digest_prompt([{"role": "user", "content": "Question 3?"}])})
    keeper = AuditorKeeper(auditor, bench.database, bench.settings.auditor_dir, "default", log_rejected, lambda: frozen)
    keeper.teach()
    known = keeper.auditor.list_known()
    assert len(known) == 32 and "event-3" not in known


def test_rows_that_are_erased_are_forgotten(bench: Workbench, backbone: Backbone) -> None:
    keeper = start(bench, backbone)
    keeper.teach()
    gone, *known = keeper.auditor.list_known()
    is_gone = inbox.preferences.c.event_id == gone
    bench.writer.run(lambda connection: connection.execute(sa.delete(inbox.preferences).where(is_gone))).result()
    keeper.teach()
    assert keeper.auditor.list_known() == known

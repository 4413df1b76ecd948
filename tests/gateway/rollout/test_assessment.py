"""What an assessment costs, how long it stands for who looks periodically, and that nothing is decided by an old one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from world import World

from feedback.errors import DatabaseError
from gateway.rollout import transactions
from gateway.rollout.assessment import Assessment, Assessor
from gateway.rollout.pure import machine
from gateway.tables.rows import RolloutRow


class CpuClock:
    """By it every assessment takes as long: half of it to read, half of it to weigh. Each half asks twice."""

    def __init__(self, cost_s: float) -> None:
        self.num_asked, self._cost_s = 0, cost_s

    def __call__(self) -> float:
        self.num_asked += 1
        return self.num_asked * self._cost_s / 2

    @property
    def num_assessments(self) -> int:
        return self.num_asked // 4


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with closing(World(tmp_path, auto_approve=False)) as made:
        yield made


def make_costly(world: World, cost_s: float) -> CpuClock:
    cpu = CpuClock(cost_s)
    world.controller.assessor = Assessor(world.writer, "demo", lambda: world.time, cpu)
    return cpu


@pytest.fixture
def cpu(world: World) -> CpuClock:
    return make_costly(world, 1.0)


async def assess(world: World, row: RolloutRow) -> Assessment:
    return await world.controller.assessor.assess(row, world.time)


async def test_an_assessment_is_recent_for_twenty_times_its_cost_and_for_its_very_row(
    world: World, cpu: CpuClock
) -> None:
    await world.started()
    row = await world.row()
    found = await assess(world, row)
    assert found.cpu_s == 1.0
    assert found.is_recent(row, found.inputs.now) and found.is_recent(row, found.inputs.now + 19.9)
    assert not found.is_recent(row, found.inputs.now + 20.0)
    assert not found.is_recent(row, found.inputs.now - 1.0)  # the clock was set back
    assert not found.is_recent(replace(row, weight=0.5), found.inputs.now)


async def test_an_assessment_knows_what_it_cost(world: World) -> None:
    await world.started()
    world.controller.assessor = Assessor(world.writer, "demo", lambda: world.time)
    assert (await assess(world, await world.row())).cpu_s > 0


async def test_a_costly_assessment_is_not_repeated_until_its_time_has_come(world: World, cpu: CpuClock) -> None:
    await world.started()
    assert cpu.num_assessments == 1
    await world.tick(5.0)
    await world.tick(4.9)  # 9.9 s: before the ramp's next step is due
    assert cpu.num_assessments == 1
    await world.tick(0.2)
    assert (await world.row()).phase == machine.PAUSED  # a step that is due is not put off
    assert cpu.num_assessments > 1


async def test_a_decision_that_could_not_be_stored_is_made_again_at_once(
    world: World, cpu: CpuClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.started()
    await world.tick()
    await world.duel(range(60), 3)

    def fail(*_: object) -> None:
        raise DatabaseError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(transactions, "carry_out", fail)
        with pytest.raises(DatabaseError):
            await world.tick(20.0)
    assert (await world.row()).phase == machine.PROGRESSING
    await world.tick()
    assert (await world.row()).phase == machine.WAITING


async def test_a_row_that_has_changed_is_assessed_at_once(world: World, cpu: CpuClock) -> None:
    await world.started()
    await world.tick()
    assert cpu.num_assessments == 1
    row = await world.row()
    await world.controller.actions.pause(row.id, "key:1", "Look")
    assert cpu.num_assessments == 1  # a pause needs no statistics
    await world.tick()
    assert cpu.num_assessments == 2
    await world.tick()
    assert cpu.num_assessments == 2


async def test_nothing_is_decided_by_an_assessment_that_is_not_new(world: World) -> None:
    """By the first one, which saw nobody, the rollout would end as inconclusive after 180 s."""
    make_costly(world, 10.0)
    await world.started()
    await world.duel(range(60), 3)
    await world.tick(190.0)
    assert ((await world.row()).phase, (await world.row()).reason) == (machine.WAITING, "Superior")


async def test_a_new_leader_assesses_at_once(world: World, cpu: CpuClock) -> None:
    await world.started()
    await world.membership.leave()
    await world.controller.tick(world.time)
    await world.tick()
    assert cpu.num_assessments == 2


async def test_who_looks_gets_what_was_weighed_lately_and_a_changed_row_anew(world: World, cpu: CpuClock) -> None:
    await world.started()
    row = await world.row()
    views = await asyncio.gather(*(world.controller.assessor.show(row) for _ in range(3)))
    assert cpu.num_assessments == 1 and views[0].evidence.users == 0
    world.time += 20.0
    await asyncio.gather(*(world.controller.assessor.show(row) for _ in range(3)))
    assert cpu.num_assessments == 2
    await world.controller.assessor.show(replace(row, phase=machine.PAUSED))
    assert cpu.num_assessments == 3


async def test_looking_does_not_put_off_what_is_due(world: World, cpu: CpuClock) -> None:
    await world.started()
    row = await world.row()
    await world.duel(range(60), 3)
    world.time += 20.0
    await world.controller.assessor.show(row)
    await world.tick()
    assert (await world.row()).phase == machine.WAITING


async def test_a_finished_rollout_is_weighed_once(world: World, cpu: CpuClock) -> None:
    await world.started()
    await world.tick(181)
    await world.tick()
    row = await world.row()
    assert row.phase == machine.DEGRADED
    before = cpu.num_assessments
    for _ in range(2):
        view = await world.controller.assessor.show(row)
        world.time += 100.0
    assert cpu.num_assessments == before + 1 and view.reason == "Inconclusive"

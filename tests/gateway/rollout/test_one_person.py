"""One person's rollout: comparisons are the units, and on little evidence that person decides."""

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from world import World

from gateway.errors import RefusedAction
from gateway.rollout.pure import machine
from gateway.tables.rows import RolloutRow

RULES = {
    "auto_approve": False, "evidence_unit": "comparison", "cap": 1, "min_users": 4, "window_s": 60.0, "alpha": 0.2,
    "approve_early": True, "max_s": 600.0,
}  # fmt: skip


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with closing(World(tmp_path, **RULES)) as made:
        yield made


async def choose(world: World, *canary_wins: bool) -> RolloutRow:
    row = await world.row()
    for wins in canary_wins:
        await world.choose(row, "me", wins)
    await world.tick(1.0)
    return await world.row()


async def say(world: World, row: RolloutRow) -> str:
    return (await world.controller.assessor.show(row)).verdict_sentence


async def test_each_comparison_enters_for_itself_and_the_person_is_asked_when_there_are_enough(world: World) -> None:
    await world.started()
    assert (await choose(world, True, True, False)).phase == machine.PROGRESSING
    row = await choose(world, True)
    assert (row.phase, row.reason, row.analysis) == (machine.WAITING, "Unproven", "Running")
    view = await world.controller.assessor.show(row)
    assert (view.evidence.unit, view.evidence.users, view.evidence.net_win_rate) == ("comparison", 4, 0.5)
    assert view.verdict_sentence.startswith("Too little evidence yet: net win rate +50%")
    assert "4 comparisons, evidence 1." in view.verdict_sentence


async def test_nothing_is_promoted_unless_the_person_approves_what_was_seen(world: World) -> None:
    await world.started()
    row = await choose(world, True, True, False, True)
    await world.tick(3600.0)
    assert (await world.row()).phase == machine.WAITING
    actions = world.controller.actions
    with pytest.raises(RefusedAction, match="moved on"):
        await actions.approve(row.id, row.generation, "another digest", "playground")
    await actions.approve(row.id, row.generation, row.decision_digest, "playground")
    await world.tick()
    promoted = await world.row()
    assert promoted.phase == machine.BAKING
    assert (await say(world, promoted)).startswith("Promoted by an operator on little evidence: net win rate +50%")


async def test_evidence_that_is_enough_is_said_as_ever(world: World) -> None:
    await world.started()
    row = await choose(world, *[True] * 8)  # E = mean of (1 + l)^8 = 10.2 of 5
    assert (row.phase, row.reason, row.analysis) == (machine.WAITING, "Superior", "Successful")
    assert (await say(world, row)).startswith("People prefer the canary (net win rate +100%")


async def test_a_pause_does_not_make_it_proven(world: World) -> None:
    await world.started()
    row = await choose(world, True, True, False, True)
    await world.controller.actions.pause(row.id, "key:1")
    await world.controller.actions.resume(row.id, "key:1")
    assert ((await world.row()).phase, (await world.row()).reason) == (machine.WAITING, "Unproven")


async def test_a_canary_that_loses_is_taken_back_while_the_person_is_asked(world: World) -> None:
    await world.started()
    row = await choose(world, *[False] * 12)  # .4 E- + .6 >= 8 needs E- >= 18.5: (1.6^12 + ...) / 8 = 45
    assert (row.phase, row.reason) == (machine.DEGRADED, "Inferior")

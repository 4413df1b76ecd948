"""Before it serves anybody, a canary's answers are looked at: alarms end it, enough sound ones begin its trial, silence does not."""

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from operator_client import open_client
from world import World

from gateway.errors import RefusedAction
from gateway.rollout.desired_state import name_observed
from gateway.rollout.pure import machine

SHADOW = {"share": 0.5, "min_answers": 50, "min_s": 10.0, "max_in_flight": 3}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with closing(World(tmp_path, auto_approve=False, shadow=SHADOW)) as made:
        await made.publish(0)
        await made.tick()
        await made.publish(1)
        await made.tick()
        yield made


async def answer(world: World, users: range, *, error: bool = False, refused: bool = False) -> None:
    """Both answers of users' first requests: stable's are sound."""
    observed = name_observed(await world.row())
    for user in users:
        world.observed.record(observed, f"u{user}", "stable", False, False, False, None, answered="duel", weight=0.5)
        world.observed.record(observed, f"u{user}", "canary", error, False, refused, None, answered="duel", weight=0.5)


async def test_while_it_is_shadowed_the_canary_is_loaded_and_serves_nobody(world: World) -> None:
    row, view = await world.row(), world.deployment.view
    assert (row.phase, row.analysis, row.weight, row.started_at) == (machine.SHADOWING, "Running", 0.0, None)
    assert (view.canary, view.weight, view.duel_share, view.rollout) == (row.checkpoint, 0.0, 0.0, None)
    assert (view.shadow_share, view.max_shadows, view.observed) == (0.5, 3, f"{row.id}.Shadowing")
    assert row.checkpoint in world.swap.loaded


async def test_enough_sound_answers_begin_the_trial_and_count_no_more_there(world: World) -> None:
    await answer(world, range(49))
    await world.tick(11)
    shown = await world.controller.assessor.show(await world.row())
    assert shown.verdict_sentence == "Nobody sees the canary yet: 49 of 50 shadow answers were looked at."
    assert shown.shadow is not None and (shown.shadow.answers, shown.shadow.min_s) == (49, 10.0)
    await answer(world, range(49, 50))
    await world.tick(1)
    row = await world.row()
    assert (row.phase, row.weight, row.step, row.started_at) == (machine.PROGRESSING, 0.25, 0, world.time)
    assert world.deployment.view.rollout == row.id and not world.deployment.view.shadow_share
    shown = await world.controller.assessor.show(row)
    assert shown.shadow is None and next(one for one in shown.guardrails if one.name == "errors").seen == 0


async def test_enough_answers_do_not_shorten_it(world: World) -> None:
    await answer(world, range(60))
    await world.tick(5)
    assert (await world.row()).phase == machine.SHADOWING


async def test_silence_never_passes_and_ends_it_in_the_end(world: World) -> None:
    await world.tick(170)
    assert (await world.row()).phase == machine.SHADOWING
    await world.tick(20)  # past max_s
    await world.tick()
    row = await world.row()
    assert (row.phase, row.reason, row.analysis) == (machine.DEGRADED, "NoData", "Inconclusive")


@pytest.mark.parametrize(("fault", "reason"), [("error", "Errors"), ("refused", "Refusals")])
async def test_an_alarm_ends_it_before_anybody_was_served(world: World, fault: str, reason: str) -> None:
    await answer(world, range(20), **{fault: True})
    await world.tick(1)
    await world.tick()
    row = await world.row()
    assert (row.phase, row.reason, row.analysis) == (machine.DEGRADED, reason, "Failed")
    assert world.deployment.view.canary is None
    shown = await world.controller.assessor.show(row)
    assert shown.verdict_sentence == f"Not promoted ({reason}): nobody has seen it, 20 shadow answers were looked at."
    assert next(one for one in shown.guardrails if one.name == "errors").seen == 40
    async with open_client(world) as client:
        replayed = (await client.get(f"/operator/v1/rollouts/{row.id}/replay")).json()["decisions"]
    assert [(one["verdict"], one["is_same"]) for one in replayed] == [(reason, True)]


async def test_an_operator_skips_it_or_ends_it(world: World) -> None:
    row = await world.row()
    async with open_client(world) as client:
        actions = (await client.get(f"/operator/v1/rollouts/{row.id}")).json()["actions"]
    assert actions == ["skip", "abort"]
    with pytest.raises(RefusedAction):
        await world.controller.actions.pause(row.id, "key:1")
    await world.controller.actions.skip_step(row.id, "key:1")
    row = await world.row()
    assert (row.phase, row.weight, row.started_at) == (machine.PROGRESSING, 0.25, world.time)


async def test_without_the_setting_the_trial_begins_at_once(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with closing(World(tmp_path / "other")) as plain:
        await plain.started()
        assert (await plain.row()).phase == machine.PROGRESSING

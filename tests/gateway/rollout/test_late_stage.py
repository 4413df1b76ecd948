"""Armed to the end: a canary that turns bad while it waits or bakes goes back, and what served before can be brought back."""

import zlib
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from operator_client import open_client
from world import World

from gateway.errors import RefusedAction
from gateway.rollout.desired_state import name_observed
from gateway.rollout.pure import machine
from gateway.tables.rollouts import decisions, list_events, list_rollouts


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with closing(World(tmp_path, auto_approve=False)) as made:
        yield made


async def wait_for_approval(world: World) -> None:
    await world.started()
    await world.duel(range(60), 3)
    await world.tick(1)
    assert (await world.row()).phase == machine.WAITING


async def promote(world: World) -> None:
    await wait_for_approval(world)
    row = await world.row()
    await world.controller.actions.approve(row.id, row.generation, row.decision_digest, "key:1")
    await world.tick()
    assert (await world.row()).phase == machine.BAKING


async def break_canary(world: World, num_users: int) -> None:
    """First requests since then, of users who have been seen in the trial too: the canary's all fail."""
    observed = name_observed(await world.row())
    for user in range(num_users):
        world.observed.record(observed, f"u{user}", "canary", True, False, False, None)
        world.observed.record(observed, f"v{user}", "stable", False, False, False, 0.1)


async def test_a_canary_that_errs_only_while_an_approval_is_awaited_goes_back(world: World) -> None:
    await wait_for_approval(world)
    await break_canary(world, 20)
    await world.tick()
    await world.tick()
    row = await world.row()
    assert (row.phase, row.reason, row.analysis) == (machine.DEGRADED, "Errors", "Failed")
    assert world.deployment.view.stable == row.stable


async def test_a_promoted_checkpoint_of_which_only_explore_pairs_are_seen_goes_back_too(world: World) -> None:
    """Where everybody is asked to compare, nobody's first request has one answer once it serves nearly all."""
    await promote(world)
    observed = name_observed(await world.row())
    for user in range(20):
        world.observed.record(observed, f"u{user}", "canary", user % 2 == 0, False, False, None, answered="explore")
    await world.tick()
    await world.tick()
    row = await world.row()
    assert (row.phase, row.reason) == (machine.DEGRADED, "Errors")


async def test_a_canary_that_errs_only_while_it_bakes_is_put_back_in_one_step(world: World) -> None:
    await promote(world)
    row = await world.row()
    assert world.deployment.view.stable == row.checkpoint
    await break_canary(world, 20)
    await world.tick()  # the pointer moves with the very transition that finds the breach
    assert world.deployment.view.stable == row.stable and world.deployment.view.canary is None
    await world.tick()
    assert ((await world.row()).phase, (await world.row()).reason) == (machine.DEGRADED, "Errors")
    assert await world.status(row.checkpoint) in ("draining", "retired")


async def test_while_it_bakes_the_canary_of_the_rollout_is_what_serves_most(world: World) -> None:
    await promote(world)
    view = world.deployment.view
    assert (view.trial_arm("stable"), view.trial_arm("canary"), view.trial_weight) == ("canary", "stable", 0.95)


async def test_what_served_before_serves_again_from_healthy_without_a_trial(world: World) -> None:
    await promote(world)
    await world.tick(20.5)
    await world.tick()
    row = await world.row()
    assert row.phase == machine.HEALTHY and world.swap.loaded == [row.checkpoint]
    async with open_client(world) as client:
        answer = await client.post("/operator/v1/rollouts:rollback", json={"note": "It lies"})
    assert answer.status_code == 200 and answer.json()["phase"] == "RollingBack"
    assert world.deployment.view.stable == row.checkpoint  # until the old one is loaded
    for _ in range(3):
        await world.tick()
    row = await world.row()
    assert (row.phase, row.reason, row.note) == (machine.DEGRADED, "RolledBack", "It lies")
    assert world.deployment.view.stable == row.stable and world.swap.loaded == [row.stable]
    assert await world.status(row.checkpoint) == "retired" and await world.status(row.stable) == "stable"
    for _ in range(3):
        await world.tick()
    assert len(await world.writer.arun(list_rollouts)) == 1  # it is not started again by itself
    sentence = (await world.controller.assessor.show(row)).verdict_sentence
    assert sentence == f"Rolled back: It lies: {row.stable} serves again."


async def test_a_roll_back_aborts_what_is_on_trial_against_it(world: World) -> None:
    await promote(world)
    await world.tick(20.5)
    await world.tick()
    old = await world.row()
    newer = await world.publish(2)
    await world.tick()
    assert (await world.row()).checkpoint == newer
    await world.controller.actions.roll_back_last("default", "key:1")
    for _ in range(6):
        await world.tick()
    assert world.deployment.view.stable == old.stable and world.deployment.view.canary is None
    assert [row.phase for row in await world.writer.arun(list_rollouts)] == [machine.DEGRADED, machine.DEGRADED]


async def test_a_roll_back_whose_checkpoint_cannot_be_loaded_leaves_what_serves(world: World) -> None:
    await promote(world)
    await world.tick(20.5)
    await world.tick()
    row = await world.row()
    world.swap.refuses[row.stable] = False
    await world.controller.actions.roll_back(row.id, "key:1")
    await world.tick()
    await world.tick()
    assert ((await world.row()).phase, (await world.row()).reason) == (machine.HEALTHY, "LoadFailed")
    assert world.deployment.view.stable == row.checkpoint


async def test_nothing_is_rolled_back_where_nothing_served_before(world: World) -> None:
    await world.publish(0)
    await world.tick()
    with pytest.raises(RefusedAction, match="Nothing served before"):
        await world.controller.actions.roll_back_last("default", "key:1")


async def test_a_retry_goes_on_with_the_users_and_first_requests_of_before(world: World) -> None:
    await world.started()
    await world.duel(range(20), 2)
    await world.tick(1)
    row = await world.row()
    before = (await world.controller.assessor.show(row)).evidence
    await world.controller.actions.abort(row.id, "key:1")
    await world.tick()
    await world.tick()
    await world.controller.actions.retry(row.id, "key:1")
    events = await world.writer.arun(lambda conn: list_events(conn, row.id))
    assert (events[-1].reason, events[-1].actor) == ("Retried", "key:1")
    await world.tick()
    again = await world.row()
    assert (again.id, again.pair, again.num_tries) == ("r-000002", row.id, 2)
    shown = await world.controller.assessor.show(again)
    assert (shown.evidence.users, shown.evidence.e) == (before.users, before.e) and before.users == 20
    assert shown.evidence.max_users == 2 * before.max_users
    assert next(one for one in shown.guardrails if one.name == "errors").seen == 40
    world.observed.record(again.id, "u3", "canary", True, False, False, None)  # seen in the first try
    assert world.observed.drain() == ([], [], [])


async def test_only_a_finished_rollout_is_retried(world: World) -> None:
    await world.started()
    with pytest.raises(RefusedAction, match="Progressing"):
        await world.controller.actions.retry((await world.row()).id, "key:1")


async def replay(client: httpx.AsyncClient, rollout: str) -> list[dict[str, object]]:
    answer = await client.get(f"/operator/v1/rollouts/{rollout}/replay")
    assert answer.status_code == 200
    found: list[dict[str, object]] = answer.json()["decisions"]
    return found


async def test_every_decision_replays_to_its_digest_and_a_forged_one_does_not(world: World) -> None:
    await promote(world)
    await break_canary(world, 20)
    await world.tick()
    await world.tick()
    rollout = (await world.row()).id
    async with open_client(world) as client:
        found = await replay(client, rollout)
        assert [(one["verdict"], one["is_same"], one["is_same_code"]) for one in found] == [
            ("Superior", True, True), ("Errors", True, True),
        ]  # fmt: skip
        await world.writer.arun(lambda conn: conn.execute(sa.update(decisions).values(digest="forged")))
        assert [one["is_same"] for one in await replay(client, rollout)] == [False, False]
        for unreadable in (b"\x00", zlib.compress(b"\x80")):  # no archive; a record without anything in it
            spoilt = sa.update(decisions).values(inputs=unreadable)
            await world.writer.arun(lambda conn, spoilt=spoilt: conn.execute(spoilt))
            found = await replay(client, rollout)
            assert [(one["replayed"], one["is_same"], one["is_same_code"]) for one in found] == [("", False, False)] * 2
        assert (await client.get("/operator/v1/rollouts/r-9/replay")).status_code == 404

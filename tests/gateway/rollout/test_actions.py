"""What operators do works whatever else is broken, and what they write steers nothing."""

import asyncio
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
from gateway.rollout.pure.machine import Reason
from gateway.tables.rollouts import list_events, rollouts


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with closing(World(tmp_path, auto_approve=False)) as made:
        yield made


async def spoil(world: World, **values: str) -> None:
    """Make the rollout's row one that raises wherever it is read."""
    await world.writer.arun(lambda conn: conn.execute(sa.update(rollouts).values(**values)))


async def post(client: httpx.AsyncClient, world: World, action: str, **body: object) -> httpx.Response:
    return await client.post(f"/operator/v1/rollouts/{(await world.row()).id}:{action}", json=body)


@pytest.mark.parametrize("damage", [{"settings": "{"}, {"settings": '{"cap": 0}'}, {"salt": "no salt"}])
async def test_a_row_that_raises_is_aborted_at_once(world: World, damage: dict[str, str]) -> None:
    old, new = await world.started()
    await spoil(world, **damage)
    async with open_client(world) as client:
        assert world.deployment.view.canary == new
        answer = await post(client, world, "abort", note="It is broken")
        assert answer.status_code == 200 and answer.json()["phase"] == "Aborting"
        assert (world.deployment.view.stable, world.deployment.view.canary) == (old, None)  # before any tick
        await world.tick()
        await world.tick()
        shown = (await client.get("/operator/v1/rollouts")).json()["data"][0]
    assert (shown["phase"], shown["reason"], shown["note"]) == ("Degraded", "Operator", "It is broken")
    assert world.swap.loaded == [old]


async def test_a_row_that_raises_is_paused_and_resumed_and_not_approved(world: World) -> None:
    await world.started()
    await spoil(world, settings="{")
    async with open_client(world) as client:
        paused = await post(client, world, "pause", note="Look")
        assert paused.status_code == 200 and "ValidationError" in paused.json()["problem"]
        assert (await post(client, world, "resume")).json()["phase"] == "Progressing"
        refused = await post(client, world, "approve", generation=1, decision_digest="")
        assert refused.status_code == 409 and "cannot be checked" in refused.json()["error"]["message"]
        status = await client.get("/operator/v1/status")
        assert status.status_code == 200 and "Cannot be judged" in status.json()["rollout"]["verdict_sentence"]


async def test_what_cannot_be_weighed_is_paused_and_said_and_goes_on_by_itself(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.started()
    await world.duel(range(10), 2)

    def fail(*_: object) -> None:
        raise ZeroDivisionError("no user")

    running = asyncio.create_task(world.controller.run())
    async with open_client(world) as client:
        with monkeypatch.context() as patch:
            patch.setattr("gateway.rollout.inputs.load_observations", fail)
            async with asyncio.timeout(10):
                while (await world.row()).phase != machine.PAUSED:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                while world.controller.num_failures < 2:  # and it is said for as long as it lasts
                    world.controller._wake.set()
                    await asyncio.sleep(0.01)
            row = await world.row()
            assert (row.reason, row.note) == (Reason.METRIC_ERROR, "ZeroDivisionError: no user")
            controller = (await client.get("/operator/v1/status")).json()["controller"]
            assert controller["problem"] == "ZeroDivisionError: no user" and controller["num_failures"] >= 2
        async with asyncio.timeout(10):
            while world.controller.problem or (await world.row()).phase != machine.PROGRESSING:
                world.controller._wake.set()
                await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_abort_waits_for_no_load(world: World) -> None:
    """A canary is being loaded again for ever, after a restart in the middle of its trial."""
    old, new = await world.started()
    world.restart()
    world.swap.blocked[new] = asyncio.Event()
    await world.tick()
    assert world.deployment.view.stable == old  # stable serves, though the canary was not tried yet
    assert world.swap.held == {old, new}  # so that nobody unloads what is being loaded
    row = await world.row()
    async with asyncio.timeout(0.4):
        await world.controller.actions.abort(row.id, "key:1")
    await world.tick()
    assert (await world.row()).phase == machine.DEGRADED
    assert await world.status(new) == "draining"
    world.swap.blocked[new].set()
    for _ in range(3):
        await world.tick()
    assert await world.status(new) == "retired" and world.swap.loaded == [old]


async def test_a_tick_waits_for_no_load_and_the_loaded_canary_is_served(world: World) -> None:
    old, new = await world.started()
    world.restart()
    world.swap.blocked[new] = asyncio.Event()
    await world.tick()
    assert (world.deployment.view.stable, world.deployment.view.canary) == (old, None)
    world.swap.blocked[new].set()
    await world.tick()
    assert (world.deployment.view.stable, world.deployment.view.canary) == (old, new)


async def test_abort_wins_over_what_the_controller_does_meanwhile(world: World) -> None:
    """The canary's load ends when its rollout has been aborted: it does not start."""
    await world.publish(0)
    await world.tick()
    new = await world.publish(1)
    world.swap.blocked[new] = asyncio.Event()
    ticking = asyncio.create_task(world.tick())
    while not world.swap.loading:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await world.controller.actions.abort((await world.row()).id, "key:1")
    world.swap.blocked[new].set()
    await asyncio.gather(ticking, return_exceptions=True)
    for _ in range(3):
        await world.tick()
    assert (await world.row()).phase == machine.DEGRADED and world.deployment.view.canary is None


async def test_a_pause_with_a_note_like_a_code_ends_by_no_data_of_its_own(world: World) -> None:
    await world.started()
    row = await world.row()
    await world.controller.actions.pause(row.id, "key:1", "NoData")
    await world.duel(range(10), 2)
    await world.tick(5)
    row = await world.row()
    assert (row.phase, row.reason, row.note) == (machine.PAUSED, Reason.OPERATOR, "NoData")
    assert "Paused (Operator: NoData)" in (await world.controller.assessor.show(row)).verdict_sentence


async def test_an_abort_with_a_note_like_a_verdict_is_none(world: World) -> None:
    await world.started()
    await world.controller.actions.abort((await world.row()).id, "key:1", note="Inconclusive")
    await world.tick()
    row = await world.row()
    assert (row.phase, row.reason, row.analysis) == (machine.DEGRADED, Reason.OPERATOR, "Failed")
    sentence = (await world.controller.assessor.show(row)).verdict_sentence
    assert sentence.startswith("Not promoted (Operator: Inconclusive)")


async def test_a_forced_promotion_says_so_to_its_end(world: World) -> None:
    await world.started()
    await world.controller.actions.promote_past((await world.row()).id, "key:1", "We know better.")
    for phase in (machine.BAKING, machine.HEALTHY):
        await world.tick(21)
        row = await world.row()
        assert (row.phase, row.reason, row.note) == (phase, Reason.FORCED, "We know better.")
        view = await world.controller.assessor.show(row)
        assert view.verdict_sentence.startswith("Promoted past the gates by an admin (We know better.)")
        assert view.weight_of == ("old" if phase == machine.BAKING else "canary")
    events = await world.writer.arun(lambda conn: list_events(conn, row.id))
    assert [(e.reason, e.note) for e in events if e.to_phase == "Promoting"] == [("Forced", "We know better.")]


async def test_the_audit_trail_says_when_a_step_was_made(world: World) -> None:
    await world.started()
    began = (await world.row()).phase_started_at
    world.time += 7
    row = await world.controller.actions.skip_step((await world.row()).id, "key:1")
    assert (row.phase, row.phase_started_at) == (machine.PROGRESSING, began)  # the trial as a whole is as old as it was
    last = (await world.writer.arun(lambda conn: list_events(conn, row.id)))[-1]
    assert (last.reason, last.at) == (Reason.SKIPPED, world.time)


async def test_a_skew_that_shows_while_an_approval_is_awaited_stops_it(world: World) -> None:
    await world.started()
    await world.duel(range(60), 3)
    await world.tick(1)
    row = await world.row()
    assert row.phase == machine.WAITING
    for user in range(60):
        world.observed.record(name_observed(row), f"late{user}", "canary", False, False, False, 0.1)
    await world.controller._read()  # stored, and not weighed yet
    with pytest.raises(RefusedAction, match="split"):
        await world.controller.actions.approve(row.id, row.generation, row.decision_digest, "key:1")
    await world.tick()
    assert ((await world.row()).phase, (await world.row()).reason) == (machine.PAUSED, Reason.SAMPLE_RATIO_MISMATCH)


async def test_duels_that_the_canary_failed_end_its_trial_and_both_failing_does_not(world: World) -> None:
    old, _ = await world.started()
    row = await world.row()
    for user in range(30):
        for _ in range(3):
            world.observed.record_failed_duel(row.id, f"both{user}", ["stable", "canary"])
    await world.tick()
    evidence = (await world.controller.assessor.show(await world.row())).evidence
    assert (evidence.users, evidence.ties, evidence.net_win_rate) == (30, 90, 0.0)
    for user in range(30):
        for _ in range(3):
            world.observed.record_failed_duel(row.id, f"u{user}", ["canary"])
    await world.tick()
    await world.tick()
    row = await world.row()
    assert (row.phase, row.reason) == (machine.DEGRADED, Reason.INFERIOR) and world.deployment.view.stable == old
    view = await world.controller.assessor.show(row)
    assert view.evidence.losses == 90
    assert next(g for g in view.guardrails if g.name == "harm").canary is None  # nobody saw those answers


async def test_a_load_that_fails_at_once_is_not_tried_without_a_pause(world: World) -> None:
    await world.started()
    world.restart()
    world.swap.refuses[(await world.row()).checkpoint] = True
    await world.membership.join(is_alone=True)
    running = asyncio.create_task(world.controller.run())
    await asyncio.sleep(1.2)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert 1 <= world.swap.num_refused <= 4  # ticks are half a second apart

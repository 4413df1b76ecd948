"""A canary that people prefer and that is far from stable is not promoted, nor is one that nobody measured."""

import json
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from operator_client import open_client
from world import World

from gateway.rollout.desired_state import build_desired_view, read_rules
from gateway.rollout.pure import machine
from gateway.tables.rollouts import decisions
from gateway.tables.serving import ServingRow


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with closing(
        World(tmp_path, auto_approve=False, accept_blind=["harm"], kl={"share": 1.0}, max_users=400, max_s=300.0)
    ) as made:
        yield made


async def measure(world: World, users: range, nats: float) -> None:
    row = await world.row()
    for user in users:
        if world.observed.claim_measurement(row.id, f"u{user}"):
            world.observed.record_divergence(row.id, f"u{user}", world.time + user * 1e-3, nats)


async def show(world: World):
    shown = await world.controller.assessor.show(await world.row())
    return shown, next(one for one in shown.guardrails if one.name == "kl")


async def test_a_sensor_that_measures_nothing_is_blind_and_blocks(world: World) -> None:
    await world.started()
    await world.duel(range(80), 3)
    await world.tick(1)
    shown, kl = await show(world)
    assert (shown.phase, kl.status, kl.seen, kl.needed, kl.action) == (machine.PROGRESSING, "blind", 0, True, "pause")
    assert "kl is blind, because its sensor never worked" in shown.verdict_sentence


async def test_a_canary_that_is_near_is_promoted_and_its_decisions_replay(world: World) -> None:
    await world.started()
    await world.duel(range(80), 3)
    await measure(world, range(80), 0.05)
    await world.tick(1)
    shown, kl = await show(world)
    assert (shown.phase, kl.status, kl.seen, kl.margin) == (machine.WAITING, "pass", 80, 0.5)
    assert kl.canary == pytest.approx(0.05) and kl.low == pytest.approx(0.05) == kl.high and kl.e >= kl.threshold
    async with open_client(world) as client:
        replayed = (await client.get(f"/operator/v1/rollouts/{shown.id}/replay")).json()["decisions"]
    assert [(one["verdict"], one["is_same"]) for one in replayed] == [("Superior", True)]
    data = json.loads(await world.writer.arun(lambda conn: conn.execute(sa.select(decisions.c.data)).scalar_one()))
    assert data["drift"]["mean"] == pytest.approx(0.05)  # in the digest


async def test_a_canary_that_is_far_is_paused_and_not_promoted_though_it_is_liked(world: World) -> None:
    await world.started()
    await measure(world, range(60), 2.0)
    await world.duel(range(80), 3)
    await world.tick(1)
    shown, kl = await show(world)
    assert (shown.phase, shown.reason, kl.status) == (machine.PAUSED, "KL", "fail")
    assert shown.reason_text == "its answers are too far from stable's" and kl.low is not None and kl.low > 0.5
    await world.controller.actions.resume(shown.id, "key:1")
    await world.tick(1)
    shown, kl = await show(world)
    assert (shown.phase, kl.waived) == (machine.PROGRESSING, True) and "kl fails" in shown.verdict_sentence
    assert world.controller.moves.by_gate["kl"] == 1


async def test_a_user_counts_once_over_restarts_and_measurements_outlive_them(world: World) -> None:
    await world.started()
    await measure(world, range(10), 0.1)
    await world.tick(1)
    world.restart()
    await world.tick(1)
    await measure(world, range(12), 9.0)  # a new process does not know whom the old one measured
    await world.tick(1)
    await world.duel(range(1), 3)
    await world.tick(1)
    _, kl = await show(world)
    assert kl.seen == 12 and kl.canary == pytest.approx((10 * 0.1 + 2 * 4.0) / 12)  # at most eight margins


async def test_rollouts_of_before_there_was_this_guardrail_are_judged_without_it(world: World) -> None:
    await world.started()
    row = await world.row()
    settings = json.loads(row.settings)
    assert read_rules(row).kl is not None
    serving = ServingRow("default", row.stable, 1, 1)
    view = build_desired_view(serving, row)
    assert view.kl is not None and view.kl.share == 1.0
    settings.pop("kl")
    old = replace(row, settings=json.dumps(settings))
    assert read_rules(old).kl is None and build_desired_view(serving, old).kl is None
    late = replace(row, phase=machine.WAITING)
    assert build_desired_view(serving, late).kl is None  # the weights stay what they are

"""What Prometheus reads of a rollout, walked through its phases."""

from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
from world import World

from gateway.rollout.pure import machine
from gateway.telemetry.rollout_metrics import PHASES, RolloutCollector


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    with closing(World(tmp_path, auto_approve=False)) as made:
        yield made


def read(world: World) -> dict[tuple[str, ...], float]:
    collector = RolloutCollector(world.deployment, world.controller, lambda: world.time)
    return {
        (sample.name.removeprefix("prefloop_"), *sample.labels.values()): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


async def test_without_a_rollout_only_what_serves_is_shown(world: World) -> None:
    assert read(world) == {("controller_failures_total",): 0}
    first = await world.publish(0)
    await world.tick()
    world.controller.num_failures = 2
    assert read(world) == {("checkpoint_info", "stable", first): 1, ("controller_failures_total",): 2}


async def test_a_rollout_shows_its_phase_its_evidence_and_its_guardrails(world: World) -> None:
    old, new = await world.started()
    await world.tick()
    found = read(world)
    assert (found["checkpoint_info", "stable", old], found["checkpoint_info", "canary", new]) == (1, 1)
    assert [name for name in PHASES if found["rollout_phase", name]] == [machine.PROGRESSING]
    assert (found["rollout_step",], found["rollout_canary_weight",], found["rollout_duel_share",]) == (0, 0.25, 1.0)
    assert found["rollout_evidence_log_e", "superior"] == 0.0
    assert found["rollout_guardrail", "errors", "not enough data"] == 1
    assert found["rollout_guardrail_missing_users", "errors"] > 0
    await world.duel(range(60), 3)
    await world.tick(1)
    await world.tick(120)
    found = read(world)
    assert [name for name in PHASES if found["rollout_phase", name]] == [machine.WAITING]
    assert found["rollout_phase_age_seconds",] == 120
    assert found["rollout_evidence_log_e", "superior"] > 3 > 0 > found["rollout_evidence_log_e", "inferior"]
    assert (found["rollout_duels", "win"], found["rollout_duels", "loss"]) == (180, 0)
    assert (found["rollout_users", "entered"], found["rollout_users", "waiting"]) == (60, 0)
    assert found["rollout_net_win_rate", "estimate"] == 1.0 >= found["rollout_net_win_rate", "high"]
    assert found["rollout_net_win_rate", "low"] > 0
    assert (found["rollout_guardrail", "errors", "pass"], found["rollout_guardrail", "errors", "fail"]) == (1, 0)
    assert found["rollout_guardrail_missing_users", "errors"] == 0
    assert found["rollout_skew_log_e", "split"] < 6.9


async def test_what_was_weighed_is_gone_with_its_rollout_and_with_the_lead(world: World) -> None:
    await world.started()
    await world.tick()
    assert ("rollout_duels", "win") in read(world)
    await world.membership.leave()
    await world.controller.tick(world.time)
    found = read(world)
    assert ("rollout_duels", "win") not in found and found["rollout_phase", machine.PROGRESSING] == 1
    row = await world.row()
    await world.controller.actions.abort(row.id, "key:1", note="Look")
    await world.tick()
    await world.tick()
    assert not [name for name in read(world) if name[0].startswith("rollout")]

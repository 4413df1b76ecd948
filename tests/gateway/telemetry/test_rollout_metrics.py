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


def count_moves(found: dict[tuple[str, ...], float]) -> dict[tuple[str, ...], float]:
    """The counters that are not 0."""
    counters = ("rollout_transitions_total", "gate_failures_total")
    return {key: value for key, value in found.items() if key[0] in counters and value}


async def test_without_a_rollout_only_what_serves_is_shown(world: World) -> None:
    assert {key for key in read(world) if key[0] not in ("rollout_transitions_total", "gate_failures_total")} == {
        ("controller_failures_total",)
    }
    first = await world.publish(0)
    await world.tick()
    world.controller.num_failures = 2
    found = read(world)
    assert count_moves(found) == {}
    assert found["checkpoint_info", "stable", first] == 1 and found["controller_failures_total",] == 2
    assert {key[0] for key in found} == {
        "checkpoint_info", "controller_failures_total", "rollout_transitions_total", "gate_failures_total",
    }  # fmt: skip


async def test_a_rollout_shows_its_phase_its_evidence_and_its_gates(world: World) -> None:
    old, new = await world.started()
    await world.tick()
    found = read(world)
    row = await world.row()
    assert (found["checkpoint_info", "stable", old], found["checkpoint_info", "canary", new]) == (1, 1)
    assert found["rollout_info", row.id, new, old, "Running", "Running"] == 1
    assert [name for name in PHASES if found["rollout_phase", name]] == [machine.PROGRESSING]
    ramp = found["rollout_step",], found["rollout_weight_ratio",], found["rollout_duel_share_ratio",]
    assert ramp == (0, 0.25, 1.0)
    assert found["gate_log_e_value", "superiority"] == 0.0
    assert found["gate_status", "errors", "not enough data"] == 1
    assert found["gate_missing_users", "errors"] > 0
    assert ("gate_ci_lower", "errors") not in found and ("gate_estimate", "errors") not in found
    await world.duel(range(60), 3)
    await world.tick(1)
    await world.tick(120)
    found = read(world)
    assert [name for name in PHASES if found["rollout_phase", name]] == [machine.WAITING]
    assert found["rollout_info", row.id, new, old, "Successful", "Superior"] == 1
    assert found["rollout_phase_age_seconds",] == 120
    assert found["gate_log_e_value", "superiority"] > found["gate_log_threshold", "superiority"]
    assert found["gate_log_threshold", "superiority"] == pytest.approx(2.9957, abs=1e-4)  # ln 20
    assert found["gate_log_threshold", "inferiority"] == pytest.approx(2.9957, abs=1e-4)  # .4 E reaches 8
    assert found["gate_log_threshold", "rollback"] == pytest.approx(2.0794, abs=1e-4)  # ln 8
    assert found["gate_log_threshold", "split"] == pytest.approx(6.9078, abs=1e-4)  # ln 1000
    assert found["gate_log_e_value", "rollback"] < 0 > found["gate_log_e_value", "inferiority"]
    assert (found["duel_users",], found["duel_waiting_users",], found["duel_top_user_ratio",]) == (60, 0, 3 / 180)
    assert found["gate_estimate", "superiority"] == 1.0 >= found["gate_ci_upper", "superiority"]
    assert found["gate_ci_lower", "superiority"] > 0
    assert (found["gate_status", "superiority", "pass"], found["gate_status", "errors", "pass"]) == (1, 1)
    assert (found["gate_status", "errors", "fail"], found["gate_status", "split", "pass"]) == (0, 1)
    assert found["gate_missing_users", "errors"] == 0
    assert found["sensor_seen_total", "errors"] == 120  # both arms of each user's first duel
    assert (found["gate_estimate", "errors"], found["gate_ci_lower", "errors"]) == (0, 0)
    assert 0.01 < found["gate_ci_upper", "errors"] < 0.1
    assert ("gate_log_e_value", "latency") not in found and ("gate_log_e_value", "latency_alarm") in found
    assert found["rollout_fragility_users",] > 40
    assert found["srm_log_e_value", "split"] < 6.9 > found["srm_log_e_value", "order"]
    assert count_moves(found) == {
        ("rollout_transitions_total", machine.PENDING, machine.PROGRESSING, "controller"): 1,
        ("rollout_transitions_total", machine.PROGRESSING, machine.WAITING, "controller"): 1,
    }


async def test_a_canary_that_a_gate_stops_and_an_operators_action_are_counted(world: World) -> None:
    await world.started()
    row = await world.row()
    await world.controller.actions.pause(row.id, "key:1")
    await world.controller.actions.resume(row.id, "key:2")
    await world.duel(range(60), 0)
    await world.tick(1)
    counted = count_moves(read(world))
    assert counted["rollout_transitions_total", machine.PROGRESSING, machine.PAUSED, "operator"] == 1
    assert counted["rollout_transitions_total", machine.PAUSED, machine.PROGRESSING, "operator"] == 1
    assert counted["rollout_transitions_total", machine.PROGRESSING, machine.ABORTING, "controller"] == 1
    assert counted["gate_failures_total", "inferiority"] == 1
    assert sum(value for key, value in counted.items() if key[0] == "gate_failures_total") == 1


async def test_the_leader_says_how_long_ago_it_weighed_the_rollout(world: World) -> None:
    await world.started()
    await world.tick()
    world.time += 4
    assert read(world)["rollout_evaluation_age_seconds",] == 4
    row = await world.row()
    world.controller.current = type(world.controller.current)(row)  # type: ignore[misc]  # it was never weighed
    world.time += 400
    assert ("rollout_evaluation_age_seconds",) not in read(world)  # its lease has run out: it is not to weigh it
    await world.membership.send_heartbeat()
    assert read(world)["rollout_evaluation_age_seconds",] == world.time - row.phase_started_at


async def test_what_was_weighed_is_gone_with_its_rollout_and_with_the_lead(world: World) -> None:
    await world.started()
    await world.tick()
    assert ("duel_users",) in read(world)
    await world.membership.leave()
    await world.controller.tick(world.time)
    found = read(world)
    assert ("duel_users",) not in found and found["rollout_phase", machine.PROGRESSING] == 1
    row = await world.row()
    await world.controller.actions.abort(row.id, "key:1", note="Look")
    await world.tick()
    await world.tick()
    assert {name[0] for name in read(world) if name[0].startswith(("rollout", "gate", "duel"))} == {
        "rollout_transitions_total", "gate_failures_total",
    }  # fmt: skip


async def test_only_info_has_checkpoints_and_rollouts_as_labels(world: World) -> None:
    await world.started()
    await world.duel(range(3), 1)
    await world.tick()
    collector = RolloutCollector(world.deployment, world.controller, lambda: world.time)
    for family in collector.collect():
        for sample in family.samples:
            is_info = sample.name.endswith("_info")
            assert is_info or set(sample.labels) <= {"phase", "gate", "status", "check", "from", "to", "actor"}
            assert is_info or not {"key:1", "u1"} & set(sample.labels.values())

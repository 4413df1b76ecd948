"""Rollouts walked from a real database with a fake swap, through every phase and a restart in each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from world import World

from feedback.errors import DatabaseError
from gateway.errors import RefusedAction
from gateway.rollout.controller import Controller
from gateway.rollout.pure import machine
from gateway.rollout.transactions import read_snapshot
from gateway.tables.checkpoints import queue_checkpoint
from gateway.tables.observations import load_observations
from gateway.tables.rollouts import list_events, list_rollouts
from gateway.tables.rows import RolloutRow
from gateway.tables.serving import StaleController


async def test_the_first_checkpoint_is_stable_at_once(make_world: Callable[..., World]) -> None:
    world = make_world()
    first = await world.publish(0)
    await world.tick()
    assert world.deployment.view.stable == first and world.swap.loaded == [first]
    assert await world.status(first) == "stable"
    assert await world.writer.arun(list_rollouts) == []


async def test_a_better_canary_walks_to_healthy(make_world: Callable[..., World]) -> None:
    world = make_world()
    old, new = await world.started()
    assert (world.deployment.view.canary, world.deployment.view.weight) == (new, 0.25)
    await world.tick(10.5)
    assert (await world.row()).phase == machine.PAUSED  # a step without data does not advance
    await world.duel(range(60), 3)
    await world.tick(1)
    await world.tick(1)
    row = await world.row()
    assert row.phase == machine.WAITING and len(row.decision_digest) == 64
    view = await world.controller.assessor.show(row)
    assert view.evidence.users == 60 and view.evidence.e > 20 and view.approve_at == row.phase_started_at + 5
    assert {g.status for g in view.guardrails if g.name in ("errors", "harm", "refusals", "truncation")} == {"pass"}
    await world.tick(5)
    assert (await world.row()).phase == machine.BAKING
    serving = world.deployment.view
    assert (serving.stable, serving.canary, serving.weight, serving.rollout) == (new, old, 0.05, row.id)
    await world.tick(20)
    await world.tick()
    assert (await world.row()).phase == machine.HEALTHY
    assert (world.deployment.view.stable, world.deployment.view.canary) == (new, None)
    assert world.swap.loaded == [new] and await world.status(old) == "retired"
    phases = [event.to_phase for event in await world.writer.arun(lambda c: list_events(c, row.id))]
    assert phases == [
        "Pending", "Progressing", "Paused", "Progressing", "WaitingPromotion", "Promoting", "Baking", "Healthy",
    ]  # fmt: skip


async def test_a_worse_canary_is_rolled_back(make_world: Callable[..., World]) -> None:
    world = make_world()
    old, new = await world.started()
    await world.duel(range(30), 0)
    await world.tick(1)
    await world.tick()
    row = await world.row()
    assert (row.phase, row.reason, row.analysis) == (machine.DEGRADED, "Inferior", "Failed")
    assert world.deployment.view.canary is None and world.swap.loaded == [old]
    assert await world.status(new) == "retired"


async def test_a_checkpoint_that_is_queued_again_while_it_is_unloaded_has_its_trial(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    _, new = await world.started()
    await world.duel(range(30), 0)

    def queue_again() -> None:
        world.swap.while_unloading = lambda: None
        world.writer.run(lambda conn: queue_checkpoint(conn, new, world.time)).result(10)

    world.swap.while_unloading = queue_again
    for _ in range(4):
        await world.tick()
    rows = await world.writer.arun(list_rollouts)
    assert [(row.checkpoint, row.num_tries, row.pair) for row in rows] == [(new, 2, "r-000001"), (new, 1, "r-000001")]
    assert rows[0].reason == "Inferior"  # by the evidence of before: a retry spends no fresh chance of error


async def test_no_verdict_in_time_is_inconclusive_and_not_promoted(make_world: Callable[..., World]) -> None:
    world = make_world()
    old, _ = await world.started()
    await world.tick(181)
    row = await world.row()
    assert (row.phase, row.reason) == (machine.DEGRADED, "Inconclusive")
    assert world.deployment.view.stable == old


async def test_superiority_without_guardrails_never_promotes(make_world: Callable[..., World]) -> None:
    world = make_world()
    await world.started()
    row = await world.row()
    for user in range(60):
        for _ in range(3):
            await world.choose(row, f"u{user}", True)
    await world.tick(1)
    assert (await world.row()).phase == machine.PROGRESSING
    assert "more clean users" in (await world.controller.assessor.show(row)).verdict_sentence


async def test_a_newer_checkpoint_waits_for_an_active_rollout_and_supersedes_a_pending_one(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    _, new = await world.started()
    second, third = await world.publish(2), await world.publish(3)
    await world.tick()
    assert (await world.row()).checkpoint == new
    world.swap.refuses[third] = True
    await world.tick(181)
    await world.tick()
    assert ((await world.row()).checkpoint, (await world.row()).phase) == (third, machine.PENDING)
    assert await world.status(second) == "superseded"
    fourth = await world.publish(4)
    await world.tick()
    assert ((await world.row()).checkpoint, (await world.row()).phase) == (fourth, machine.PROGRESSING)
    assert await world.status(third) == "superseded"


async def test_a_checkpoint_that_does_not_prove_itself_ends_its_rollout(make_world: Callable[..., World]) -> None:
    world = make_world()
    old = await world.publish(0)
    await world.tick()
    new = await world.publish(1)
    world.swap.refuses[new] = False
    await world.tick()
    assert ((await world.row()).phase, (await world.row()).reason) == (machine.DEGRADED, "LoadFailed")
    assert world.deployment.view.stable == old


async def _wait_for_approval(world: World) -> RolloutRow:
    await world.started()
    await world.duel(range(60), 3)
    await world.tick(1)
    row = await world.row()
    assert row.phase == machine.WAITING
    return row


async def test_approval_needs_the_generation_and_digest_that_were_seen(make_world: Callable[..., World]) -> None:
    world = make_world(auto_approve=False)
    row = await _wait_for_approval(world)
    for generation, digest in ((row.generation - 1, row.decision_digest), (row.generation, "other")):
        with pytest.raises(RefusedAction):
            await world.controller.actions.approve(row.id, generation, digest, "key:1")
    await world.controller.actions.approve(row.id, row.generation, row.decision_digest, "key:1")
    await world.tick()
    assert (await world.row()).phase == machine.BAKING


@pytest.mark.parametrize("comes_back", [True, False])
async def test_an_approved_checkpoint_that_the_engines_have_lost_is_not_promoted_until_it_is_loaded(
    make_world: Callable[..., World], comes_back: bool
) -> None:
    world = make_world(auto_approve=False)
    row = await _wait_for_approval(world)
    world.swap.release(row.checkpoint)
    world.swap.refuses[row.checkpoint] = True
    await world.controller.actions.approve(row.id, row.generation, row.decision_digest, "key:1")
    await world.tick(1)
    assert (await world.row()).phase == machine.PROMOTING
    assert world.deployment.view.stable == row.stable
    if comes_back:
        del world.swap.refuses[row.checkpoint]
    await world.tick(121)
    phase = (await world.row()).phase
    assert phase == (machine.BAKING if comes_back else machine.DEGRADED)
    assert world.deployment.view.stable == (row.checkpoint if comes_back else row.stable)


async def test_abort_while_baking_goes_back_to_the_old_checkpoint_at_once(make_world: Callable[..., World]) -> None:
    world = make_world(approve_countdown_s=0.0)
    old, new = await world.started()
    await world.duel(range(60), 3)
    await world.tick(1)
    await world.tick(1)
    row = await world.row()
    assert row.phase == machine.BAKING and world.deployment.view.stable == new
    await world.controller.actions.roll_back(row.id, "key:1")
    assert (world.deployment.view.stable, world.deployment.view.canary) == (old, None)
    await world.tick()
    await world.tick()
    assert (await world.row()).phase == machine.DEGRADED and world.swap.loaded == [old]


async def test_pause_holds_and_resume_goes_on(make_world: Callable[..., World]) -> None:
    world = make_world()
    await world.started()
    row = await world.row()
    await world.controller.actions.pause(row.id, "key:1", "Look")
    await world.duel(range(60), 3)
    await world.tick(60)
    assert (await world.row()).phase == machine.PAUSED
    await world.controller.actions.resume(row.id, "key:1")
    await world.tick()
    assert (await world.row()).phase == machine.WAITING


async def test_stable_against_itself_gets_a_directory_and_a_rollout_of_its_own(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    first = await world.publish(0)
    await world.tick()
    copy = await world.controller.registry.start_aa()
    await world.tick()
    row = await world.row()
    assert row.aa and row.checkpoint == copy.id and row.stable == first and copy.id.startswith("a-000001-")
    assert Path(copy.path).name == copy.id and copy.parsed.metrics["aa"] == 1.0
    waiting = await world.controller.registry.start_aa()
    assert waiting.id != copy.id
    with pytest.raises(RefusedAction, match=waiting.id):
        await world.controller.registry.start_aa()


async def test_a_leader_that_was_asleep_while_another_took_over_changes_nothing(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    await world.started()
    sleeper = world.controller
    world.restart()
    await world.tick()
    assert sleeper.membership.fence is not None  # by its own clock its lease runs on
    with pytest.raises(StaleController):
        await sleeper.tick(world.time + 200)  # inconclusive by now
    assert (await world.row()).phase == machine.PROGRESSING


async def test_a_leader_that_was_asleep_opens_no_rollout(make_world: Callable[..., World]) -> None:
    world = make_world()
    await world.publish(0)
    await world.tick()
    sleeper = world.controller
    world.restart()
    await world.tick()
    new = await world.publish(1)
    with pytest.raises(StaleController):
        await sleeper.tick(world.time)
    assert await world.writer.arun(list_rollouts) == [] and await world.status(new) == "waiting"


@pytest.mark.parametrize("kill_after", range(1, 9))
async def test_a_gateway_killed_after_any_transition_goes_on(
    make_world: Callable[..., World], kill_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies right after the n-th event has committed, before anything follows from it."""
    world = make_world(approve_countdown_s=0.0, baking_s=1.0)

    class Killed(BaseException):
        """Stands for kill -9."""

    num_moves = 0
    original = Controller._move

    async def move_and_die(self: Controller, *args: object, **kwargs: object) -> RolloutRow:
        nonlocal num_moves
        moved = await original(self, *args, **kwargs)  # type: ignore[arg-type]
        num_moves += 1
        if num_moves == kill_after:
            raise Killed
        return moved

    monkeypatch.setattr(Controller, "_move", move_and_die)
    old = await world.publish(0)
    await world.tick()
    new = await world.publish(1)
    has_dueled = False
    for _ in range(30):
        try:
            await world.tick(1.0)
        except Killed:
            world.restart()
        rows = await world.writer.arun(list_rollouts)
        if rows and rows[0].phase == machine.PROGRESSING and world.deployment.view.canary and not has_dueled:
            await world.duel(range(60), 3)
            has_dueled = True
    assert (await world.row()).phase == machine.HEALTHY
    assert (world.deployment.view.stable, world.deployment.view.canary) == (new, None)
    assert world.swap.loaded == [new] and await world.status(old) == "retired"


async def test_an_abort_that_is_cut_off_is_finished_after_the_restart(make_world: Callable[..., World]) -> None:
    world = make_world()
    old, new = await world.started()
    row = await world.row()
    await world.controller.actions.abort(row.id, "key:1", note="Operator")
    world.restart()
    await world.tick()
    await world.tick()
    assert (await world.row()).phase == machine.DEGRADED
    assert world.deployment.view.stable == old and await world.status(new) == "retired"


async def test_a_restart_keeps_first_requests(make_world: Callable[..., World]) -> None:
    world = make_world()
    await world.started()
    row = await world.row()
    world.observed.record(row.id, "u", "canary", False, False, False, 0.1)
    await world.tick()
    world.restart()
    await world.tick()
    world.observed.record(row.id, "u", "canary", True, False, False, 0.1)
    await world.tick()
    kept = await world.writer.arun(lambda conn: load_observations(conn, [row.id]))
    assert [(o.user, o.error) for o in kept] == [("u", False)]


async def count_transactions(world: World) -> int:
    """How many a tick makes."""
    num_begun = 0

    def count(connection: object) -> None:
        nonlocal num_begun
        num_begun += 1

    world.time += 2.0  # so that weighing is due
    if world.membership.fence is not None:
        await world.membership.send_heartbeat()
    sa.event.listen(world.engine, "begin", count)
    await world.controller.tick(world.time)
    sa.event.remove(world.engine, "begin", count)
    return num_begun


async def test_a_tick_with_nothing_to_do_is_one_transaction_and_one_more_to_weigh(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    await world.publish(0)
    await world.tick()
    assert await count_transactions(world) == 1
    await world.publish(1)
    await world.tick()
    row = await world.row()
    assert row.phase == machine.PROGRESSING
    for user in ("u1", "u2"):
        world.observed.record(row.id, user, "canary", False, False, False, 0.1)
        assert await count_transactions(world) == 2
    assert len(await world.writer.arun(lambda conn: load_observations(conn, [row.id]))) == 2
    await world.membership.leave()
    assert await count_transactions(world) == 1  # it only follows


async def test_first_requests_are_stored_later_if_the_tables_cannot_be_written_now(
    make_world: Callable[..., World],
) -> None:
    world = make_world()
    await world.started()
    row = await world.row()

    def refuse(connection: object) -> None:
        raise sa.exc.OperationalError("COMMIT", {}, OSError("no space left"))

    world.observed.record(row.id, "first", "canary", False, False, False, 0.1)
    sa.event.listen(world.engine, "commit", refuse)
    with pytest.raises(DatabaseError):
        await world.controller.tick(world.time)
    sa.event.remove(world.engine, "commit", refuse)
    world.time += 1.0
    world.observed.record(row.id, "second", "canary", False, False, False, 0.1)
    await world.tick()
    kept = await world.writer.arun(lambda conn: load_observations(conn, [row.id]))
    assert [(o.user, o.at) for o in kept] == [("first", world.time - 1.5), ("second", world.time - 0.5)]


async def test_the_pointer_is_read_before_what_it_is_compared_with(make_world: Callable[..., World]) -> None:
    """What PostgreSQL reads later may be newer: mixed so, a view has the older generation and is replaced."""
    world = make_world()
    await world.publish(0)
    await world.tick()
    statements: list[str] = []
    sa.event.listen(world.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    await world.writer.arun(lambda conn: read_snapshot(conn, "default"))
    reads = [statement for statement in statements if statement.startswith("SELECT")]
    assert "FROM serving" in reads[0] and len(reads) == 5

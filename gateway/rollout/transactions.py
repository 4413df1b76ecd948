"""What the controller reads and writes, each function within one transaction: all of it, or StaleController and nothing.

The fence keeps out a leader that was asleep, the generation whoever decided by what has changed since. When to write,
and what must be loaded or unloaded before, the controller knows.
"""

from dataclasses import dataclass, replace

from sqlalchemy import Connection

from gateway.engines.full_engines import RegisteredEngine, list_engines
from gateway.rollout.desired_state import new_rollout, new_statuses
from gateway.rollout.pure import machine
from gateway.rollout.pure.machine import Transition
from gateway.sections.rollout import RolloutSection
from gateway.tables.checkpoints import CheckpointRow, list_checkpoints, set_status
from gateway.tables.rollouts import active_rollout, add_decision, add_rollout, count_rollouts, find_tries, move_rollout
from gateway.tables.rows import DecisionRow, RolloutRow
from gateway.tables.serving import ServingRow, advance_serving, get_serving, require_fence


@dataclass(frozen=True)
class Snapshot:
    """rollout: the one that has not finished. waiting, draining: checkpoints in order of arrival."""

    serving: ServingRow
    rollout: RolloutRow | None
    engines: list[RegisteredEngine]
    waiting: list[CheckpointRow]
    draining: list[CheckpointRow]


def read_snapshot(conn: Connection, policy: str) -> Snapshot:
    """Read all of it."""
    return Snapshot(
        serving=get_serving(conn, policy),
        rollout=active_rollout(conn, policy),
        engines=list_engines(conn),
        waiting=list_checkpoints(conn, "waiting"),
        draining=list_checkpoints(conn, "draining"),
    )


def adopt_first(conn: Connection, snapshot: Snapshot, fence: int) -> None:
    """Make the oldest waiting checkpoint stable, where none is."""
    first = snapshot.waiting[0].id
    advance_serving(conn, snapshot.serving.policy, snapshot.serving.generation, fence, first)
    set_status(conn, first, "stable")


def set_retired(conn: Connection, policy: str, checkpoint: str, fence: int) -> None:
    """The checkpoint has left the engines. If someone has queued it again meanwhile, it waits."""
    require_fence(conn, policy, fence)
    if checkpoint in [row.id for row in list_checkpoints(conn, "draining")]:
        set_status(conn, checkpoint, "retired")


def open_rollout(conn: Connection, snapshot: Snapshot, settings: RolloutSection, now: float, fence: int) -> None:
    """Put the newest waiting checkpoint on trial, in place of the older ones."""
    policy = snapshot.serving.policy
    require_fence(conn, policy, fence)
    *older, newest = snapshot.waiting
    for checkpoint in older:
        set_status(conn, checkpoint.id, "superseded")
    set_status(conn, newest.id, "canary")
    row = new_rollout(newest, snapshot.serving, policy, settings, count_rollouts(conn), now)
    if earlier := find_tries(conn, row):
        row = replace(row, pair=earlier[0].pair, num_tries=len(earlier) + 1, reason=machine.Reason.RETRIED.value)
    add_rollout(conn, row)


def carry_out(
    conn: Connection, old: RolloutRow, to: Transition, now: float, fence: int | None, decision: DecisionRow | None
) -> RolloutRow:
    """Move a rollout: row, event, pointer, statuses and decision. Returns the row under its generation.

    fence: None for an operator's action, which any gateway may carry out.
    """
    pointer = None
    if to.row.phase == machine.BAKING and old.phase == machine.PROMOTING:
        pointer = old.checkpoint
    if to.row.phase == machine.ABORTING and old.phase in (machine.BAKING, machine.ROLLING_BACK):
        pointer = old.stable
    for checkpoint, status in new_statuses(old, to.row):
        set_status(conn, checkpoint, status)
    if decision is not None:
        add_decision(conn, old.id, now, decision)
    return move_rollout(
        conn,
        old,
        to.row,
        fence=fence,
        actor=to.actor,
        reason=to.reason.value,
        now=now,
        note=to.note,
        stable=pointer,
    )

"""The serving pointer: which checkpoint is stable, under a generation and a fence.

A transition that does not hold both changes nothing: each function raises StaleController instead.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Integer, String, Table, bindparam, select, update

from feedback.database import insert_or_ignore, metadata
from gateway.tables.checkpoints import CheckpointRow, get_checkpoint
from gateway.tables.columns import select_rows

serving = Table(
    "serving",
    metadata,
    Column("policy", String(200), primary_key=True),
    Column("stable", String(200)),
    Column("generation", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
)


class StaleController(Exception):
    """Another controller, or another transition, moved the rollout first; nothing was written."""


@dataclass(frozen=True)
class ServingRow:
    """Which checkpoint is stable. Every transition raises `generation`; every new controller raises `fence`."""

    policy: str
    stable: str | None
    generation: int
    fence: int


_SERVING = select_rows(ServingRow, serving).where(serving.c.policy == bindparam("policy"))


def get_serving(conn: Connection, policy: str) -> ServingRow:
    """Return the policy's pointer, making an empty one if there is none."""
    row = conn.execute(_SERVING, {"policy": policy}).first()
    if row is None:
        insert_or_ignore(conn, serving, {"policy": policy, "stable": None, "generation": 0, "fence": 0})
        return ServingRow(policy, None, 0, 0)
    return ServingRow(*row)


def get_stable(conn: Connection, policy: str) -> CheckpointRow | None:
    row = conn.execute(_SERVING, {"policy": policy}).first()
    return None if row is None or row.stable is None else get_checkpoint(conn, row.stable)


def take_fence(conn: Connection, policy: str) -> int:
    """Become the controller: every earlier holder's moves fail from now on."""
    fence = get_serving(conn, policy).fence + 1
    conn.execute(update(serving).where(serving.c.policy == policy).values(fence=fence))
    return fence


def require_fence(conn: Connection, policy: str, fence: int) -> None:
    """Raises StaleController if another controller leads; else none begins to before this transaction has ended."""
    query = select(serving.c.fence).where(serving.c.policy == policy).with_for_update()
    if conn.execute(query).scalar_one() != fence:
        raise StaleController(f"fence {fence}")


def advance_serving(
    conn: Connection, policy: str, generation: int, fence: int | None, stable: str | None = None
) -> int:
    """Raise the generation, and move the pointer to `stable` if given.

    Raises StaleController if the generation, or the fence where one is given, has moved on.
    """
    values: dict[str, Any] = {"generation": generation + 1}
    if stable is not None:
        values["stable"] = stable
    where = [serving.c.policy == policy, serving.c.generation == generation]
    if fence is not None:
        where.append(serving.c.fence == fence)
    if conn.execute(update(serving).where(*where).values(**values)).rowcount != 1:
        raise StaleController(f"generation {generation}, fence {fence}")
    return generation + 1

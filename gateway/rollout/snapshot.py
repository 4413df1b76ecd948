"""What the tables say at one moment: all that the controller and its followers go by, read in one transaction.

The pointer is read first. Where every statement sees a moment of its own (PostgreSQL), a snapshot that mixes two has the
older generation: what would follow from it is refused or ignored, and the next look sees the newer one.
"""

from dataclasses import dataclass

from sqlalchemy import Connection

from gateway.engines.full_engines import RegisteredEngine, list_engines
from gateway.tables.checkpoints import CheckpointRow, list_checkpoints
from gateway.tables.rollouts import RolloutRow, active_rollout
from gateway.tables.serving import ServingRow, get_serving


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

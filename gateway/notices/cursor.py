"""How far each receiver of notices has heard: a row of its own, moved only by the gateway that leads."""

from sqlalchemy import BigInteger, Column, Connection, String, Table, func, select, update

from feedback.database import insert_or_ignore, metadata
from gateway.notices.message import Transition
from gateway.tables.rollouts import rollout_events, rollouts
from gateway.tables.serving import require_fence

notice_cursors = Table(
    "notice_cursors",
    metadata,
    Column("target", String(64), primary_key=True),
    Column("last_event", BigInteger, nullable=False),
)

_MOST_READ = 100
_NEXT = (
    select(rollout_events, rollouts.c.policy, rollouts.c.checkpoint, rollouts.c.stable)
    .join(rollouts, rollouts.c.id == rollout_events.c.rollout)
    .order_by(rollout_events.c.id)
    .limit(_MOST_READ)
)


def open_cursor(conn: Connection, target: str) -> None:
    """Begin a target's cursor, if it has none, at the newest event there is."""
    newest = conn.execute(select(func.coalesce(func.max(rollout_events.c.id), 0))).scalar_one()
    insert_or_ignore(conn, notice_cursors, {"target": target, "last_event": newest})


def has_news(conn: Connection, target: str) -> bool:
    """Whether there may be something that a target has not heard of: to be looked at under the lock."""
    newest = select(func.max(rollout_events.c.id)).scalar_subquery()
    query = select(notice_cursors.c.target).where(
        notice_cursors.c.target == target, notice_cursors.c.last_event < newest
    )
    return conn.execute(query).first() is not None


def read_next(conn: Connection, policy: str, fence: int, target: str) -> list[Transition]:
    """Transitions that the target has not heard of, oldest first. Raises StaleController if this gateway leads no more.

    The serving row is locked, as every transition locks it: none that began earlier can commit later with a smaller id.
    """
    require_fence(conn, policy, fence)
    heard = select(notice_cursors.c.last_event).where(notice_cursors.c.target == target).scalar_subquery()
    query = _NEXT.where(rollout_events.c.id > heard, rollouts.c.policy == policy)
    return [
        Transition(
            event=row.id, at=row.at, policy=row.policy, rollout=row.rollout, checkpoint=row.checkpoint, stable=row.stable,
            from_phase=row.from_phase, to_phase=row.to_phase, actor=row.actor, reason=row.reason, note=row.note,
        )
        for row in conn.execute(query)
    ]  # fmt: skip


def move_cursor(conn: Connection, policy: str, fence: int, target: str, event: int) -> None:
    """The target has heard of everything up to this event. Raises StaleController."""
    require_fence(conn, policy, fence)
    moved = update(notice_cursors).where(notice_cursors.c.target == target, notice_cursors.c.last_event < event)
    conn.execute(moved.values(last_event=event))

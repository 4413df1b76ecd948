"""Reasons of rollouts are codes with notes beside them, first requests say how they were answered, failed duels are kept.

What an operator had typed as the reason becomes the note of the code "Operator", or "Forced" for a promotion.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

_CODES = ("Operator", "Approved", "Resumed", "RolledBack", "Forced")  # the gateway's own of what operators did


def upgrade() -> None:
    for table in ("rollouts", "rollout_events"):
        op.add_column(table, sa.Column("note", sa.Text(), nullable=False, server_default=""))
    op.add_column("rollout_observations", sa.Column("answered", sa.String(length=10), nullable=True))
    op.create_table(
        "failed_duels",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("rollout", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("outcome", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_failed_duels_rollout", "failed_duels", ["rollout"])
    _turn_typed_reasons_into_notes()


def _turn_typed_reasons_into_notes() -> None:
    rollouts = sa.table("rollouts", *map(sa.column, ("id", "phase", "reason", "note")))
    events = sa.table("rollout_events", *map(sa.column, ("id", "rollout", "to_phase", "actor", "reason", "note")))
    typed = events.c.actor.like("key:%") & events.c.reason.not_in(_CODES)
    moves = events.alias("moves")
    last = (
        sa.select(sa.func.max(moves.c.id))
        .where(moves.c.rollout == rollouts.c.id, moves.c.to_phase.in_(("Paused", "Aborting")))
        .correlate(rollouts)
        .scalar_subquery()
    )
    is_typed = sa.exists().where(events.c.id == last, typed, events.c.reason == rollouts.c.reason).correlate(rollouts)
    in_words = rollouts.c.phase.in_(("Paused", "Aborting", "Degraded"))
    op.execute(sa.update(rollouts).where(in_words, is_typed).values(note=rollouts.c.reason, reason="Operator"))
    code = sa.case((events.c.to_phase == "Promoting", "Forced"), else_="Operator")
    op.execute(sa.update(events).where(typed).values(note=events.c.reason, reason=code))

"""Rows that a checkpoint learnt from say whose they are: the answer outlives the rows themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("checkpoint_rows", sa.Column("user", sa.Text(), nullable=False, server_default=""))
    op.create_index("ix_checkpoint_rows_user", "checkpoint_rows", ["user"])
    learnt = sa.table("checkpoint_rows", sa.column("event_id"), sa.column("user"))
    for name in ("preferences", "trainer_signals", "demonstrations"):
        said = sa.table(name, sa.column("event_id"), sa.column("user"))
        whose = sa.select(said.c.user).where(said.c.event_id == learnt.c.event_id).scalar_subquery()
        is_there = sa.exists().where(said.c.event_id == learnt.c.event_id)
        op.execute(sa.update(learnt).where(is_there).values(user=whose))

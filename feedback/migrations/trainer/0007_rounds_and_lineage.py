"""Rounds say where they began and what they left over; which rows each checkpoint learnt from is kept."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("rounds", sa.Column("start", sa.Text(), nullable=False, server_default="stable"))
    op.add_column("rounds", sa.Column("num_left", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("rounds", sa.Column("details", sa.Text(), nullable=False, server_default="{}"))
    op.create_table(
        "checkpoint_rows",
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("is_replay", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("checkpoint", "event_id"),
    )
    op.create_index("ix_checkpoint_rows_event_id", "checkpoint_rows", ["event_id"])

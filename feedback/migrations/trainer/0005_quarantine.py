"""Preferences that learning could not use are kept apart, each with its error."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "quarantined_preferences",
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("part", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("quarantined_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
    )

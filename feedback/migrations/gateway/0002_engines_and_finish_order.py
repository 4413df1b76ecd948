"""Engines of whole models are registered, and comparisons say which answer was complete first."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "engines",
        sa.Column("url", sa.String(length=500), nullable=False),
        sa.Column("checkpoint", sa.String(length=200), nullable=False),
        sa.Column("registered_at", sa.Float(), nullable=False),
        sa.Column("registered_by", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("url"),
    )
    op.add_column("comparisons", sa.Column("finished_first", sa.Text(), nullable=True))

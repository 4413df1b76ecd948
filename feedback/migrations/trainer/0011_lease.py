"""Several trainers share a database: whose turn it is, which numbers are given, and the plan of the round under way.

Expand: the release before reads none of this, and leaves a reward update's columns at their defaults.
"""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"


def upgrade() -> None:
    op.create_table(
        "trainer_lease",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("taken_at", sa.Float(), nullable=False),
        sa.Column("view", sa.Text(), nullable=False),
    )
    op.create_table(
        "checkpoint_numbers",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("round", sa.Integer()),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("checkpoint", sa.Text()),
    )
    op.create_table(
        "round_plans",
        sa.Column("number", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("plan", sa.Text(), nullable=False),
    )
    op.add_column("reward_updates", sa.Column("state", sa.Text(), nullable=False, server_default=""))
    op.add_column("reward_updates", sa.Column("uses", sa.Text(), nullable=False, server_default=""))

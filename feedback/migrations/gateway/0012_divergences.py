"""How far the canary's answers are from stable's, one of each user."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "rollout_divergences",
        sa.Column("rollout", sa.String(length=64), nullable=False),
        sa.Column("user", sa.String(length=128), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.Column("nats", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("rollout", "user"),
    )

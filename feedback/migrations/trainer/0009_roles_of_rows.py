"""Rows that a checkpoint learnt from say as what: a choice, a prompt alone, or a pair that the reward model labelled."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.add_column("checkpoint_rows", sa.Column("role", sa.Text(), nullable=False, server_default="chosen"))

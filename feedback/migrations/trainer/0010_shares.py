"""Preferences say how their two answers were picked: at random, which "" stands for too, or by the reward model.

Expand: the release before leaves the column at its default.
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("preferences", sa.Column("share", sa.Text(), nullable=False, server_default=""))

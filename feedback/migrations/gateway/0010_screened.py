"""Duels say which of their answers a harm screen calls harmful, once it has looked.

Expand: the release before leaves the column empty, which is "not looked at yet".
"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("comparisons", sa.Column("screened", sa.Text(), nullable=True))

"""Duels say what the app said of their request (domain, language, task), so that evidence is read by slice.

Expand: the release before leaves the column empty, and such duels are in no slice.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("comparisons", sa.Column("tags", sa.Text(), nullable=True))

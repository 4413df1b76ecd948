"""Duels say how their two answers differ in length, flattery, refusals and questions, so that tripwires read no text.

Expand: the release before leaves the column empty, and of such duels nothing is compared.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("comparisons", sa.Column("differences", sa.Text(), nullable=True))

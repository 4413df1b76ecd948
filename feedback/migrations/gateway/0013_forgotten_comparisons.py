"""Finds the comparisons whose prompt and answers have not been forgotten yet, by when they ran out."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    remembered = sa.text("length(body) > 0")
    op.create_index(
        "comparisons_remembered",
        "comparisons",
        ["expires_at"],
        sqlite_where=remembered,
        postgresql_where=remembered,
    )

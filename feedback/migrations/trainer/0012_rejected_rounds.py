"""Rounds say whether they trained and the offline gate said no: what ended otherwise tells nothing of a chain of checkpoints.

Expand: the release before leaves the column at its default, and begins one restart fewer.
"""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("rounds", sa.Column("was_rejected", sa.Boolean(), nullable=False, server_default=sa.false()))
    rounds = sa.table("rounds", sa.column("was_rejected"), sa.column("reason"))
    op.execute(sa.update(rounds).where(rounds.c.reason.like("offline gate: %")).values(was_rejected=sa.true()))

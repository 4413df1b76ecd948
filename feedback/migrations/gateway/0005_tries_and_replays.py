"""Rollouts share their evidence by pair, name what was accepted, and keep what decisions rested on; first requests say more.

Expand: the release before leaves the columns at their defaults, and goes on with split_waived. What was skewed and accepted is named
"split" among what was waived. Rollouts of before are pairs of their own.
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("rollouts", sa.Column("waived", sa.Text(), nullable=False, server_default=""))
    op.add_column("rollouts", sa.Column("pair", sa.String(length=64), nullable=False, server_default=""))
    op.add_column("rollouts", sa.Column("num_tries", sa.Integer(), nullable=False, server_default="1"))
    op.create_index("ix_rollouts_pair", "rollouts", ["pair"])
    rollouts = sa.table("rollouts", *map(sa.column, ("id", "waived", "pair")), sa.column("split_waived", sa.Boolean()))
    op.execute(sa.update(rollouts).values(pair=rollouts.c.id))
    op.execute(sa.update(rollouts).where(rollouts.c.split_waived).values(waived="split"))
    op.add_column("decisions", sa.Column("inputs", sa.LargeBinary(), nullable=True))
    for name, kind in (("latency_token_s", sa.Float()), ("length", sa.Float()), ("unseen", sa.String(length=40))):
        op.add_column("rollout_observations", sa.Column(name, kind, nullable=True))

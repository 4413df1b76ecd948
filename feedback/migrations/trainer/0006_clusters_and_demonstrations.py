"""Rows get the cluster of their prompt, held-out rows one name, and demonstrations a table.

Expand: the release before leaves `cluster` null, and the trainer places such rows. What was held out stays held out.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    for table in ("preferences", "trainer_signals"):
        op.add_column(table, sa.Column("cluster", sa.BigInteger(), nullable=True))
        op.create_index(f"ix_{table}_cluster", table, ["cluster"])
        rows = sa.table(table, sa.column("split"))
        was_held_out = rows.c.split.in_(["heldout_user", "heldout_prompt"])
        op.get_bind().execute(sa.update(rows).where(was_held_out).values(split="heldout"))
    op.create_index("ix_preferences_use", "preferences", ["policy", "split", "used_as_new", "id", "preferred"])
    op.create_table(
        "demonstrations",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("channel", sa.Text(), nullable=False),
        sa.Column("prompt_key", sa.Text(), nullable=False),
        sa.Column("cluster", sa.BigInteger(), nullable=True),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("demonstration_json", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("event_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_demonstrations_cluster", "demonstrations", ["cluster"])
    op.create_table(
        "prompt_clusters",
        sa.Column("cluster", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("signature", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("cluster"),
    )
    op.create_table(
        "prompt_bands",
        sa.Column("band", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("cluster", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("band"),
    )

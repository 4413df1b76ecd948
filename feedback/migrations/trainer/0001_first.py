"""The first schema of the trainer's database. Creates what is missing, and so adopts one from before there were revisions.

`signals` is not made again: 0002 replaces it, and one that is there is taken over by it.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    _create_inbox()
    _create_preferences()
    _create_rounds()


def _create_inbox() -> None:
    op.create_table(
        "dead_letters",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("record_offset", sa.BigInteger(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("headers", sa.LargeBinary(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.Column("buried_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", "record_offset"),
        if_not_exists=True,
    )
    op.create_table(
        "gaps",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("from_offset", sa.BigInteger(), nullable=False),
        sa.Column("to_offset", sa.BigInteger(), nullable=False),
        sa.Column("found_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition", "from_offset"),
        if_not_exists=True,
    )
    op.create_table(
        "offsets",
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("partition", sa.Integer(), nullable=False),
        sa.Column("next", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("topic", "partition"),
        if_not_exists=True,
    )


def _create_preferences() -> None:
    op.create_table(
        "preferences",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("comparison_id", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("asked", sa.Text(), nullable=False),
        sa.Column("prompt_key", sa.Text(), nullable=False),
        sa.Column("preferred", sa.Text(), nullable=False),
        sa.Column("chosen_at", sa.Double(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("used_as_new", sa.Integer(), nullable=False),
        sa.Column("used_as_replay", sa.Integer(), nullable=False),
        sa.Column("choice_json", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("event_id"),
        sqlite_autoincrement=True,
        if_not_exists=True,
    )
    op.create_index("ix_preferences_comparison_id", "preferences", ["comparison_id"], if_not_exists=True)
    op.create_index("ix_preferences_user", "preferences", ["user"], if_not_exists=True)


def _create_rounds() -> None:
    op.create_table(
        "reward_updates",
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("metrics", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("version"),
        if_not_exists=True,
    )
    op.create_table(
        "rounds",
        sa.Column("number", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("started_at", sa.Float(), nullable=False),
        sa.Column("finished_at", sa.Float(), nullable=True),
        sa.Column("outcome", sa.String(), nullable=True),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("checkpoint", sa.String(), nullable=True),
        sa.Column("last_preference_id", sa.Integer(), nullable=False),
        sa.Column("trigger_choice_at", sa.Float(), nullable=False),
        sa.Column("metrics", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("number"),
        if_not_exists=True,
    )

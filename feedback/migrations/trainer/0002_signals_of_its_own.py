"""The trainer's signals move to `trainer_signals`: the gateway has a table `signals`, and both may share one database.

Expand: the rows are copied with their ids, and the old table stays for the release before; a later revision drops it.
An empty one goes at once, as it would stand in the gateway's way. The gateway's own table is left alone.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_COLUMNS = [
    "id", "event_id", "completion_id", "policy", "app", "user", "checkpoint", "kind", "prompt_key", "split",
    "created_at", "signal_json",
]  # fmt: skip


def upgrade() -> None:
    moved = op.create_table(
        "trainer_signals",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("event_id", sa.Text(), nullable=False),
        sa.Column("completion_id", sa.Text(), nullable=False),
        sa.Column("policy", sa.Text(), nullable=False),
        sa.Column("app", sa.Text(), nullable=False),
        sa.Column("user", sa.Text(), nullable=False),
        sa.Column("checkpoint", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("prompt_key", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("signal_json", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("event_id"),
        sqlite_autoincrement=True,
    )
    connection = op.get_bind()
    inspector = sa.inspect(connection)
    if inspector.has_table("signals") and "signal_json" in {each["name"] for each in inspector.get_columns("signals")}:
        _copy(connection, moved)
    op.create_index("ix_trainer_signals_completion_id", "trainer_signals", ["completion_id"])
    op.create_index("ix_trainer_signals_user", "trainer_signals", ["user"])


def _copy(connection: sa.Connection, moved: sa.Table) -> None:
    old = sa.table("signals", *(sa.column(name) for name in _COLUMNS))
    connection.execute(sa.insert(moved).from_select(_COLUMNS, sa.select(*old.c).order_by(old.c.id)))
    last_id = connection.execute(sa.select(sa.func.max(moved.c.id))).scalar()
    if last_id is None:
        op.drop_table("signals")
    elif connection.dialect.name == "postgresql":  # the copy did not move the sequence; SQLite's follows by itself
        connection.execute(sa.select(sa.func.setval(sa.func.pg_get_serial_sequence("trainer_signals", "id"), last_id)))

"""The tables of the trainer's database; trainer/ declares its own on the same metadata."""

from __future__ import annotations

import sqlalchemy as sa

from feedback.outbox import declare_outbox

metadata = sa.MetaData()

_row_id = sa.BigInteger().with_variant(sa.Integer, "sqlite")

offsets = sa.Table(
    "offsets",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("next", sa.BigInteger, nullable=False),
)

preferences = sa.Table(
    "preferences",
    metadata,
    sa.Column("id", _row_id, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("comparison_id", sa.Text, nullable=False, index=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("user", sa.Text, nullable=False, index=True),
    sa.Column("asked", sa.Text, nullable=False),
    sa.Column("prompt_key", sa.Text, nullable=False),
    sa.Column("preferred", sa.Text, nullable=False),
    sa.Column("chosen_at", sa.Double, nullable=False),
    sa.Column("split", sa.Text, nullable=False),
    sa.Column("used_as_new", sa.Integer, nullable=False),
    sa.Column("used_as_replay", sa.Integer, nullable=False),
    sa.Column("choice_json", sa.LargeBinary, nullable=False),  # events.Choice
    sa.Column("cluster", sa.BigInteger),  # of near-duplicate prompts; null until the trainer has placed the row
    sa.Column("share", sa.Text, nullable=False, server_default=""),  # events.Share
    sa.Index("ix_preferences_use", "policy", "split", "used_as_new", "id", "preferred"),  # covers counts by use
    sqlite_autoincrement=True,
)

signals = sa.Table(
    "trainer_signals",  # the gateway's are `signals`, and both may share one database
    metadata,
    sa.Column("id", _row_id, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("completion_id", sa.Text, nullable=False, index=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("user", sa.Text, nullable=False, index=True),
    sa.Column("checkpoint", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("prompt_key", sa.Text, nullable=False),  # "" if what was asked is not known as messages
    sa.Column("split", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("signal_json", sa.LargeBinary, nullable=False),  # events.Signal
    sa.Column("cluster", sa.BigInteger),
    sqlite_autoincrement=True,
)

demonstrations = sa.Table(
    "demonstrations",
    metadata,
    sa.Column("id", _row_id, primary_key=True, autoincrement=True),
    sa.Column("event_id", sa.Text, nullable=False, unique=True),
    sa.Column("policy", sa.Text, nullable=False),
    sa.Column("app", sa.Text, nullable=False),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("channel", sa.Text, nullable=False),
    sa.Column("prompt_key", sa.Text, nullable=False),
    sa.Column("cluster", sa.BigInteger),
    sa.Column("split", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("demonstration_json", sa.LargeBinary, nullable=False),  # events.Demonstration
    sqlite_autoincrement=True,
)

for _table in (preferences, signals, demonstrations):
    _is_unplaced = _table.c.cluster.is_(None)
    sa.Index(f"ix_{_table.name}_unplaced", _table.c.id, sqlite_where=_is_unplaced, postgresql_where=_is_unplaced)

prompt_clusters = sa.Table(  # near-duplicate prompts, each cluster with the signature of its first
    "prompt_clusters",
    metadata,
    sa.Column(
        "id", _row_id, primary_key=True, autoincrement=True
    ),  # in order: by random numbers each would touch a page
    sa.Column("cluster", sa.BigInteger, nullable=False, unique=True),
    sa.Column("split", sa.Text, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
)

prompt_bands = sa.Table(  # what a cluster is found by: hashes of prompts, of their signatures' bands, of conversations
    "prompt_bands",
    metadata,
    sa.Column("band", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("cluster", sa.BigInteger, nullable=False),
)

dead_letters = sa.Table(
    "dead_letters",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("record_offset", sa.BigInteger, primary_key=True),
    sa.Column("error", sa.Text, nullable=False),  # PoisonEvent, FutureVersion
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("key", sa.LargeBinary, nullable=False),
    sa.Column("headers", sa.LargeBinary, nullable=False),  # MessagePack
    sa.Column("value", sa.LargeBinary, nullable=False),
    sa.Column("buried_at", sa.Double, nullable=False),
)

dead_letter_outbox = declare_outbox("dead_letter_outbox", metadata)
"""Dead letters on their way to the topic of dead letters, where others than this trainer can see them."""

discarded_letters = sa.Table(  # marks: the letters stay where they are
    "discarded_letters",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("record_offset", sa.BigInteger, primary_key=True),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("discarded_at", sa.Double, nullable=False),
)

gaps = sa.Table(
    "gaps",
    metadata,
    sa.Column("topic", sa.Text, primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("from_offset", sa.BigInteger, primary_key=True),
    sa.Column("to_offset", sa.BigInteger, nullable=False),
    sa.Column("found_at", sa.Double, nullable=False),
)

quarantine = sa.Table(  # marks: the preferences stay where they are
    "quarantined_preferences",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("part", sa.Text, nullable=False),  # of learning, where the preference failed
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("quarantined_at", sa.Double, nullable=False),
)

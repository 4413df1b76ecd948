"""The trainer's side of the log: preferences and signals, the offsets they came from, and the dead letters.

Promises: data and offset move in one transaction, so a crash repeats a batch and never loses or doubles a row.
Everything here can be rebuilt by reading the log again. Keeps skips and signals too; what may be trained on is for the
dataset.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from feedback.database import insert_or_ignore
from feedback.errors import EventError, PositionMismatch
from feedback.events import Choice, Event, Signal, decode_event
from feedback.log.base import Record
from feedback.outbox import declare_outbox

Split = Literal["train", "heldout_user", "heldout_prompt"]
HELDOUT_SHARE = 0.1  # of users, and of prompts

metadata = sa.MetaData()
"""The trainer's tables; its own modules may declare theirs on it."""

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
    sqlite_autoincrement=True,
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


@dataclass(frozen=True, kw_only=True)
class PreferenceRow:
    """One stored choice. used_as_new and used_as_replay count the reward model's steps it was part of."""

    id: int
    event_id: str
    user: str
    prompt_key: str
    preferred: str
    choice_json: bytes
    chosen_at: float
    split: Split
    used_as_new: int
    used_as_replay: int

    @property
    def choice(self) -> Choice:
        """The choice, with its comparison."""
        return msgspec.json.decode(self.choice_json, type=Choice)


def key_prompt(messages: Sequence[dict[str, Any]]) -> str:
    """The same for the same conversation up to the answers; 32 hexadecimal digits."""
    return hashlib.sha256(msgspec.json.encode(messages, order="deterministic")).hexdigest()[:32]


def choose_split(user: str, prompt_key: str) -> Split:
    """Fixed for ever by user and prompt: held-out users first, then held-out prompts. "" is no user."""
    if user and _unit("user", user) < HELDOUT_SHARE:
        return "heldout_user"
    return "heldout_prompt" if _unit("prompt", prompt_key) < HELDOUT_SHARE else "train"


def _unit(kind: str, text: str) -> float:
    digest = hashlib.sha256(f"prefloop split {kind} {text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def load_offset(connection: sa.Connection, topic: str, partition: int) -> int:
    """The next offset to read; 0 for a partition never read. Locks its row where rows can be locked."""
    query = sa.select(offsets.c.next).where(offsets.c.topic == topic, offsets.c.partition == partition)
    return connection.execute(query.with_for_update()).scalar() or 0


def load_offsets(connection: sa.Connection, topic: str) -> dict[int, int]:
    """Next offsets by partition: a checkpoint's watermark."""
    query = sa.select(offsets.c.partition, offsets.c.next).where(offsets.c.topic == topic)
    return {row.partition: row.next for row in connection.execute(query)}


def consume(connection: sa.Connection, records: Iterable[Record], *, read_from: int | None = None) -> int:
    """Store a batch and move the offsets; return how many preferences are new. Run it in one transaction.

    read_from: the offset that was asked of the log, if the records are of one partition and may start behind a hole.
    Records below the stored offset are skipped. Raises PositionMismatch if the batch starts above it: seek, and read
    again. What cannot be read becomes a dead letter.
    """
    num_new = 0
    ordered = sorted(records, key=lambda record: (record.topic, record.partition, record.offset))
    for (topic, partition), group in groupby(ordered, key=lambda record: (record.topic, record.partition)):
        batch = list(group)
        next_offset = _lock_offset(connection, topic, partition)
        start = batch[0].offset if read_from is None else read_from
        if start > next_offset:
            raise PositionMismatch(topic, partition, start, next_offset)
        fresh = [record for record in batch if record.offset >= next_offset]
        num_new += sum(_take(connection, record) for record in fresh)
        if fresh:
            _store_offset(connection, topic, partition, fresh[-1].offset + 1)
    return num_new


def record_gap(connection: sa.Connection, topic: str, partition: int, begin: int) -> int:
    """Retention took records before they were read: note it, go on at `begin`; return how many are lost."""
    next_offset = _lock_offset(connection, topic, partition)
    if begin <= next_offset:
        return 0
    place = {"topic": topic, "partition": partition, "from_offset": next_offset}
    insert_or_ignore(connection, gaps, {**place, "to_offset": begin, "found_at": time.time()})
    _store_offset(connection, topic, partition, begin)
    return begin - next_offset


def restore(connection: sa.Connection, record: Record) -> bool:
    """Store what a record says unless it is there, and leave the offsets alone; return whether a preference is new.

    For records that the offset has passed already. What cannot be read becomes a dead letter.
    """
    return _take(connection, record)


def load_preferences(
    connection: sa.Connection, *, after_id: int = 0, split: Split | None = None, limit: int | None = None
) -> list[PreferenceRow]:
    """Stored choices in the order of their arrival."""
    names = [field for field in PreferenceRow.__dataclass_fields__]
    query = sa.select(*(preferences.c[name] for name in names)).where(preferences.c.id > after_id)
    if split is not None:
        query = query.where(preferences.c.split == split)
    rows = connection.execute(query.order_by(preferences.c.id).limit(limit)).mappings()
    return [PreferenceRow(**row) for row in rows]


def count_preferences(connection: sa.Connection) -> int:
    """Choices ever stored, skips included."""
    return connection.execute(sa.select(sa.func.count()).select_from(preferences)).scalar_one()


def load_signals(connection: sa.Connection, *, after_id: int = 0, limit: int | None = None) -> list[tuple[int, Signal]]:
    """Stored signals with the ids of their rows, in the order of their arrival."""
    query = sa.select(signals.c.id, signals.c.signal_json).where(signals.c.id > after_id)
    rows = connection.execute(query.order_by(signals.c.id).limit(limit))
    return [(row.id, msgspec.json.decode(row.signal_json, type=Signal)) for row in rows]


def count_signals(connection: sa.Connection) -> int:
    """Signals ever stored."""
    return connection.execute(sa.select(sa.func.count()).select_from(signals)).scalar_one()


def count_dead_letters(connection: sa.Connection) -> int:
    """Records that could not be read."""
    return connection.execute(sa.select(sa.func.count()).select_from(dead_letters)).scalar_one()


def mark_used(connection: sa.Connection, ids: Sequence[int], *, as_new: bool) -> None:
    """Count one use of each preference, as new or as replay."""
    column = preferences.c.used_as_new if as_new else preferences.c.used_as_replay
    connection.execute(sa.update(preferences).where(preferences.c.id.in_(ids)).values({column: column + 1}))


def _take(connection: sa.Connection, record: Record) -> bool:
    try:
        event = decode_event(record.headers, record.value)
    except EventError as error:
        _bury(connection, record, error)
        return False
    if isinstance(event.data, Signal):
        _store_signal(connection, event, event.data)
    return isinstance(event.data, Choice) and _store_preference(connection, event, event.data)


def _store_preference(connection: sa.Connection, event: Event, choice: Choice) -> bool:
    comparison = choice.comparison
    prompt_key = key_prompt(comparison.messages)
    row = {
        "event_id": event.id,
        "comparison_id": comparison.id,
        "policy": comparison.policy,
        "app": comparison.app,
        "user": comparison.user,
        "asked": comparison.asked,
        "prompt_key": prompt_key,
        "preferred": choice.preferred,
        "chosen_at": choice.chosen_at,
        "split": choose_split(comparison.user, prompt_key),
        "used_as_new": 0,
        "used_as_replay": 0,
        "choice_json": msgspec.json.encode(choice),
    }
    return insert_or_ignore(connection, preferences, row)


def _store_signal(connection: sa.Connection, event: Event, signal: Signal) -> None:
    prompt_key = "" if signal.messages is None else key_prompt(signal.messages)
    row = {
        "event_id": event.id,
        "completion_id": signal.completion_id,
        "policy": signal.policy,
        "app": signal.app,
        "user": signal.user,
        "checkpoint": signal.checkpoint,
        "kind": signal.kind,
        "prompt_key": prompt_key,
        "split": choose_split(signal.user, prompt_key),
        "created_at": signal.created_at,
        "signal_json": msgspec.json.encode(signal),
    }
    insert_or_ignore(connection, signals, row)


def _bury(connection: sa.Connection, record: Record, error: EventError) -> None:
    row = {
        "topic": record.topic,
        "partition": record.partition,
        "record_offset": record.offset,
        "error": type(error).__name__,
        "reason": str(error),
        "key": record.key,
        "headers": msgspec.msgpack.encode(dict(record.headers)),
        "value": record.value,
        "buried_at": time.time(),
    }
    if not insert_or_ignore(connection, dead_letters, row):
        return
    place = f"{record.topic}/{record.partition}/{record.offset}"
    headers = {
        **record.headers,
        "prefloop_error": type(error).__name__.encode(),
        "prefloop_reason": str(error).encode(errors="replace"),
        "prefloop_place": place.encode(),  # topic/partition/offset
    }
    letter = {
        "event_id": place,
        "key": record.key,
        "headers": msgspec.msgpack.encode(headers),
        "value": record.value,
        "created_at": row["buried_at"],
    }
    insert_or_ignore(connection, dead_letter_outbox, letter)  # it waits there still, if its row was lost


def _lock_offset(connection: sa.Connection, topic: str, partition: int) -> int:
    # A row that is not there cannot be locked, and two readers would both believe to be the first.
    insert_or_ignore(connection, offsets, {"topic": topic, "partition": partition, "next": 0})
    return load_offset(connection, topic, partition)


def _store_offset(connection: sa.Connection, topic: str, partition: int, next_offset: int) -> None:
    query = sa.update(offsets).where(offsets.c.topic == topic, offsets.c.partition == partition)
    connection.execute(query.values(next=next_offset))

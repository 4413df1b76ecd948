"""Which stored rows a round may take, told apart by whether its start has learnt from them; and those rows themselves.

Only rows of the served policy and of the training split. Reads nothing of learning's and marks nothing: lineage.py says
what a checkpoint learnt from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import sqlalchemy as sa

from feedback import inbox
from feedback.database import split_parameters
from feedback.inbox import demonstrations, preferences, quarantine
from trainer.run.publish.lineage import checkpoint_rows
from trainer.run.rows import signal_queries
from trainer.run.rows.rows import PAIR_COLUMNS, read_pair
from trainer.text.pairs import DECISIVE, Demonstration, Pair
from trainer.text.rejected import Reject

Row = TypeVar("Row")
_DIRECTED = (*DECISIVE, "tie")  # what a DPO loss can use


class RowsMissing(Exception):
    """Rows that a round was planned with are gone from the database, erased since."""


@dataclass(frozen=True)
class Pool:
    """Event ids in order of arrival: what the start of a round has not learnt from, and what it has.

    last_id: the newest row's, of whatever use. watermark: next offset by partition. All of one moment.
    """

    new: list[str]
    old: list[str]
    last_id: int
    watermark: dict[int, int]


@contextmanager
def read_consistently(database: sa.Engine) -> Iterator[sa.Connection]:
    """A connection whose statements all see the same moment."""
    with database.connect() as connection:
        if connection.dialect.name == "postgresql":  # SQLite's read transactions are such by nature
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        yield connection


def read_pool(connection: sa.Connection, *, policy: str, topic: str, taught: Sequence[str], edit_weight: float) -> Pool:
    """Pairs that a round may take. taught: checkpoints whose rows are in the weights it starts from.

    edit_weight: of an edited text that is preferred over what it was made of, beside a choice; 0: edits make no pairs.
    """
    columns = preferences.c
    set_aside = sa.exists().where(quarantine.c.event_id == columns.event_id)
    query = sa.select(columns.event_id).where(
        columns.policy == policy,
        columns.split == "train",
        columns.preferred.in_(_DIRECTED),
        sa.not_(set_aside),
    )
    edits = signal_queries.load_edit_pairs(connection, policy, edit_weight) if edit_weight else []
    ids = list(connection.execute(query.order_by(columns.id)).scalars())  # edits last: few, and never cut by the cap
    ids += [edit.event_id for edit in edits]
    return _make_pool(connection, ids, topic, taught)


def read_demonstrations(connection: sa.Connection, *, policy: str, topic: str, taught: Sequence[str]) -> Pool:
    """Demonstrations that an SFT round may take, as `read_pool` gives pairs."""
    ids = [each.event_id for each in signal_queries.load_demonstrations(connection, policy)]
    return _make_pool(connection, ids, topic, taught)


def find_newest_demonstration(connection: sa.Connection) -> tuple[int, int]:
    """Ids of the newest demonstration and of the newest signal, which may hold an edit."""
    newest = sa.select(sa.func.coalesce(sa.func.max(demonstrations.c.id), 0))
    return int(connection.execute(newest).scalar_one()), signal_queries.find_last_signal(connection)


def _make_pool(connection: sa.Connection, event_ids: Sequence[str], topic: str, taught: Sequence[str]) -> Pool:
    """Events told apart by whether one of the checkpoints learnt from them."""
    learnt = sa.select(checkpoint_rows.c.event_id).where(
        checkpoint_rows.c.checkpoint.in_(list(taught)), checkpoint_rows.c.role == "chosen"
    )  # what a row says is new to a policy that only sampled on its prompt
    known = set(connection.execute(learnt).scalars())
    new = [event_id for event_id in event_ids if event_id not in known]
    old = [event_id for event_id in event_ids if event_id in known]
    last_id = connection.execute(sa.select(sa.func.coalesce(sa.func.max(preferences.c.id), 0))).scalar_one()
    return Pool(new, old, last_id, inbox.load_offsets(connection, topic))


def load_pairs(
    connection: sa.Connection, policy: str, event_ids: Sequence[str], edit_weight: float, reject: Reject
) -> list[Pair]:
    """The pairs of these events, choices or edits, in their order; what cannot be read is rejected. Raises RowsMissing.

    Also what is in quarantine by now: a round that goes on has the rows that it began with.
    """
    read: dict[str, Pair] = {}
    found: set[str] = set()
    for some in split_parameters(event_ids):
        for row in connection.execute(sa.select(*PAIR_COLUMNS).where(preferences.c.event_id.in_(some))):
            found.add(row.event_id)
            if (pair := read_pair(row, reject)) is not None:
                read[row.event_id] = pair
    if len(found) < len(set(event_ids)):
        edits = signal_queries.load_edit_pairs(connection, policy, edit_weight)
        read |= {edit.event_id: edit for edit in edits if edit.event_id not in found}
    return _put_in_order(connection, event_ids, read, found)


def load_demonstrations(
    connection: sa.Connection, policy: str, event_ids: Sequence[str], reject: Reject
) -> list[Demonstration]:
    """The demonstrations of these events, in their order. Raises RowsMissing."""
    read = signal_queries.load_demonstrations(connection, policy, event_ids=event_ids, reject=reject)
    return _put_in_order(connection, event_ids, {each.event_id: each for each in read}, set())


def _put_in_order(
    connection: sa.Connection, event_ids: Sequence[str], read: Mapping[str, Row], rejected: set[str]
) -> list[Row]:
    """The rows in the order of the events. Raises RowsMissing for any that is neither read, rejected, nor set aside."""
    missing = list(set(event_ids) - read.keys() - rejected)
    for some in split_parameters(missing):
        query = sa.select(quarantine.c.event_id).where(quarantine.c.event_id.in_(some))
        rejected |= set(connection.execute(query).scalars())
    if gone := set(missing) - rejected:
        raise RowsMissing(f"{len(gone)} of {len(event_ids)} rows are gone")
    return [read[event_id] for event_id in event_ids if event_id in read]

"""Which stored rows a round may take, told apart by whether its start has learnt from them; and those rows themselves.

Only rows of the served policy and of the training split. Reads nothing of learning's and marks nothing: lineage.py says
what a checkpoint learnt from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from feedback import events, inbox
from feedback.events import Choice
from feedback.inbox import demonstrations, preferences, quarantine
from trainer.run.lineage import checkpoint_rows
from trainer.run.rounds import NewPreferences
from trainer.text.pairs import DECISIVE, Answer, Demonstration, Pair, Prompt, make_pair
from trainer.text.rejected import Reject

Row = TypeVar("Row")
_CHUNK = 500  # ids of one query: databases bound the parameters of a statement
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


def read_pool(connection: sa.Connection, *, policy: str, topic: str, taught: Sequence[str]) -> Pool:
    """Pairs that a round may take. taught: checkpoints whose rows are in the weights it starts from."""
    columns = preferences.c
    known = sa.exists().where(
        checkpoint_rows.c.event_id == columns.event_id, checkpoint_rows.c.checkpoint.in_(list(taught))
    )
    set_aside = sa.exists().where(quarantine.c.event_id == columns.event_id)
    query = (
        sa.select(columns.event_id, known.label("is_known"))
        .where(
            columns.policy == policy,
            columns.split == "train",
            columns.preferred.in_(_DIRECTED),
            sa.not_(set_aside),
        )
        .order_by(columns.id)
    )
    new: list[str] = []
    old: list[str] = []
    for event_id, is_known in connection.execute(query):
        (old if is_known else new).append(event_id)
    last_id = connection.execute(sa.select(sa.func.coalesce(sa.func.max(columns.id), 0))).scalar_one()
    return Pool(new, old, last_id, inbox.load_offsets(connection, topic))


def read_demonstrations(connection: sa.Connection, *, policy: str, topic: str, taught: Sequence[str]) -> Pool:
    """Demonstrations that an SFT round may take, as `read_pool` gives pairs."""
    columns = demonstrations.c
    known = sa.exists().where(
        checkpoint_rows.c.event_id == columns.event_id, checkpoint_rows.c.checkpoint.in_(list(taught))
    )
    set_aside = sa.exists().where(quarantine.c.event_id == columns.event_id)
    query = sa.select(columns.event_id, known.label("is_known")).where(
        columns.policy.in_((policy, "")), columns.split == "train", sa.not_(set_aside)
    )
    new: list[str] = []
    old: list[str] = []
    for event_id, is_known in connection.execute(query.order_by(columns.id)):
        (old if is_known else new).append(event_id)
    last_id = connection.execute(sa.select(sa.func.coalesce(sa.func.max(preferences.c.id), 0))).scalar_one()
    return Pool(new, old, last_id, inbox.load_offsets(connection, topic))


def count_new(connection: sa.Connection, policy: str, after_id: int) -> NewPreferences:
    """What came of a policy after a preference, whatever its split."""
    columns = preferences.c
    set_aside = sa.exists().where(quarantine.c.event_id == columns.event_id)
    is_decisive = sa.case((columns.preferred.in_(DECISIVE), 1), else_=0)
    row = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(is_decisive), 0),
            sa.func.coalesce(sa.func.max(columns.id), after_id),
        ).where(columns.policy == policy, columns.id > after_id, columns.preferred != "skip", sa.not_(set_aside))
    ).one()
    return NewPreferences(int(row[0]), int(row[1]), int(row[2]))


def find_trigger_time(connection: sa.Connection, policy: str, after_id: int, nth: int) -> float:
    """When the nth decisive choice after a preference was made; of the newest choice if there are fewer, 0 without any."""
    columns = preferences.c
    newer = sa.select(columns.chosen_at).where(
        columns.policy == policy, columns.id > after_id, columns.preferred != "skip"
    )
    exact = newer.where(columns.preferred.in_(DECISIVE)).order_by(columns.id).offset(nth - 1).limit(1)
    found = connection.execute(exact).scalar()
    if found is None:
        found = connection.execute(newer.order_by(columns.id.desc()).limit(1)).scalar()
    return float(found or 0.0)


def load_pairs(connection: sa.Connection, event_ids: Sequence[str], reject: Reject) -> list[Pair]:
    """The pairs of these events, in their order; what cannot be read is rejected. Raises RowsMissing."""
    columns = preferences.c
    wanted = (columns.id, columns.event_id, columns.prompt_key, columns.split, columns.choice_json)
    return _load_in_order(
        event_ids,
        lambda chunk: connection.execute(sa.select(*wanted).where(columns.event_id.in_(chunk))).all(),
        lambda row: make_pair(
            msgspec.json.decode(row.choice_json, type=Choice),
            event_id=row.event_id,
            prompt_key=row.prompt_key,
            split=row.split,
            row_id=row.id,
        ),
        reject,
    )


def load_demonstrations(connection: sa.Connection, event_ids: Sequence[str], reject: Reject) -> list[Demonstration]:
    """The demonstrations of these events, in their order; what cannot be read is rejected. Raises RowsMissing."""
    columns = demonstrations.c
    wanted = (columns.id, columns.event_id, columns.prompt_key, columns.split, columns.demonstration_json)
    return _load_in_order(
        event_ids,
        lambda chunk: connection.execute(sa.select(*wanted).where(columns.event_id.in_(chunk))).all(),
        _make_demonstration,
        reject,
    )


def _make_demonstration(row: Any) -> Demonstration:
    written = msgspec.json.decode(row.demonstration_json, type=events.Demonstration)
    return Demonstration(
        event_id=row.event_id,
        prompt=Prompt(
            messages=written.messages,
            key=row.prompt_key,
            tools=written.tools,
            template_kwargs=written.chat_template_kwargs,
            tags=written.tags,
        ),
        answer=Answer(text=written.answer),
        source="file" if written.channel in ("file", "import") else "api",
        split=row.split,
        policy=written.policy,
        app=written.app,
        user=written.user,
        row_id=row.id,
    )


def _load_in_order(
    event_ids: Sequence[str],
    query: Callable[[Sequence[str]], Sequence[Any]],
    read: Callable[[Any], Row],
    reject: Reject,
) -> list[Row]:
    read_by_id: dict[str, Row] = {}
    found: set[str] = set()
    for start in range(0, len(event_ids), _CHUNK):
        for row in query(event_ids[start : start + _CHUNK]):
            event_id = str(row.event_id)
            found.add(event_id)
            try:
                read_by_id[event_id] = read(row)
            except (ValueError, RecursionError) as error:  # bytes that a disk or another release changed
                reject(event_id, "load", error)
    if missing := len(set(event_ids) - found):
        raise RowsMissing(f"{missing} of {len(event_ids)} rows are gone")
    return [read_by_id[event_id] for event_id in event_ids if event_id in read_by_id]

"""The learner's view of signals and demonstrations: ratings, edits as pairs, and ideal answers, of one policy.

In the order of arrival, without what is in quarantine. A row that cannot be read is given to `reject` and left out. What
a signal says is trainer/text/signal_rows's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

from feedback.database import split_parameters
from feedback.events import Demonstration as DemonstrationEvent
from feedback.events import Signal
from feedback.inbox import demonstrations, quarantine, signals
from trainer.text.pairs import Demonstration, Pair, Rated
from trainer.text.rejected import Reject, log_rejected
from trainer.text.signal_rows import is_edit, make_demonstration, make_edit, make_edit_pair, make_rated

_Body = TypeVar("_Body", Signal, DemonstrationEvent)
_Rows = Iterable[Any]


def load_rated(
    connection: sa.Connection,
    policy: str,
    after_id: int = 0,
    limit: int | None = None,
    *,
    split: str = "train",
    reject: Reject = log_rejected,
) -> list[Rated]:
    """Thumbs, ratings and outcomes of signals after one. limit: of signals; row_id of the last is where to go on."""
    rated: list[Rated] = []
    for row in _select_signals(connection, policy, split, after_id, limit):
        signal = _read(row, Signal, reject)
        if signal is not None:
            rated += make_rated(
                signal, event_id=row.event_id, prompt_key=row.prompt_key, split=row.split, row_id=row.id
            )
    return rated


def find_last_signal(connection: sa.Connection) -> int:
    """The id of the newest signal, 0 without any: whatever it says, `load_rated` need not look at it again."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(signals.c.id), 0))).scalar_one())


def load_edit_pairs(
    connection: sa.Connection,
    policy: str,
    weight: float,
    after_id: int = 0,
    *,
    split: str = "train",
    reject: Reject = log_rejected,
) -> list[Pair]:
    """Edited texts, each preferred over the answer it was made of. weight: of such a pair beside a choice (1)."""
    pairs = []
    for row in _select_signals(connection, policy, split, after_id):
        signal = _read(row, Signal, reject)
        if signal is not None and is_edit(signal):
            pairs.append(
                make_edit_pair(
                    signal,
                    event_id=row.event_id,
                    prompt_key=row.prompt_key,
                    split=row.split,
                    weight=weight,
                    row_id=row.id,
                )
            )
    return pairs


def load_demonstrations(
    connection: sa.Connection,
    policy: str,
    *,
    split: str = "train",
    event_ids: Sequence[str] | None = None,
    reject: Reject = log_rejected,
) -> list[Demonstration]:
    """Ideal answers: those that were sent or imported, then the edits. event_ids: only these events'."""
    wanted = None if event_ids is None else frozenset(event_ids)
    found = []
    for row in _select_demonstrations(connection, policy, split, event_ids):
        event = _read(row, DemonstrationEvent, reject)
        if event is not None:
            found.append(
                make_demonstration(
                    event, event_id=row.event_id, prompt_key=row.prompt_key, split=row.split, row_id=row.id
                )
            )
    for row in _select_signals(connection, policy, split):
        if wanted is not None and row.event_id not in wanted:
            continue
        signal = _read(row, Signal, reject)
        if signal is not None and is_edit(signal):
            found.append(
                make_edit(signal, event_id=row.event_id, prompt_key=row.prompt_key, split=row.split, row_id=row.id)
            )
    return found


def _select_signals(
    connection: sa.Connection, policy: str, split: str, after_id: int = 0, limit: int | None = None
) -> _Rows:
    columns = signals.c
    set_aside = sa.exists().where(quarantine.c.event_id == columns.event_id)
    query = sa.select(
        columns.id, columns.event_id, columns.prompt_key, columns.split, columns.signal_json.label("body")
    )
    where = (_is_of(columns.policy, policy), columns.split == split, columns.id > after_id, columns.kind == "said")
    return connection.execute(query.where(*where, sa.not_(set_aside)).order_by(columns.id).limit(limit))


def _select_demonstrations(
    connection: sa.Connection, policy: str, split: str, event_ids: Sequence[str] | None
) -> _Rows:
    columns = demonstrations.c
    set_aside = sa.exists().where(quarantine.c.event_id == columns.event_id)
    body = columns.demonstration_json.label("body")
    query = sa.select(columns.id, columns.event_id, columns.prompt_key, columns.split, body)
    query = query.where(_is_of(columns.policy, policy), columns.split == split, sa.not_(set_aside)).order_by(columns.id)
    if event_ids is None:
        return connection.execute(query)
    rows = [
        row
        for some in split_parameters(event_ids)
        for row in connection.execute(query.where(columns.event_id.in_(some))).all()
    ]
    return sorted(rows, key=lambda row: row.id)


def _is_of(column: sa.ColumnElement[str], policy: str) -> sa.ColumnElement[bool]:
    """Of the policy, or of an app's answer that the gateway has no record of, which names none."""
    return column.in_((policy, ""))


def _read(row: Any, kind: type[_Body], reject: Reject) -> _Body | None:
    try:
        return msgspec.json.decode(row.body, type=kind)
    except (ValueError, RecursionError) as error:  # bytes that a disk or another release changed
        reject(row.event_id, "load", error)
        return None

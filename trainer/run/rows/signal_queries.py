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
    until_id: int | None = None,
    *,
    split: str = "train",
    reject: Reject = log_rejected,
) -> list[Rated]:
    """Thumbs, ratings and outcomes of signals after one, up to another."""
    rated: list[Rated] = []
    for row in _select_signals(connection, policy, split, after_id, until_id):
        signal = _read(row, Signal, reject)
        if signal is not None:
            rated += make_rated(
                signal, event_id=row.event_id, prompt_key=row.prompt_key, split=row.split, row_id=row.id
            )
    return rated


def find_last_signal(connection: sa.Connection) -> int:
    """The id of the newest signal, 0 without any."""
    return int(connection.execute(sa.select(sa.func.coalesce(sa.func.max(signals.c.id), 0))).scalar_one())


def find_last_placed(connection: sa.Connection) -> int:
    """The newest signal before which every one has its split: whoever went on after a later one would never read them."""
    unplaced = connection.execute(sa.select(sa.func.min(signals.c.id)).where(signals.c.cluster.is_(None))).scalar()
    return find_last_signal(connection) if unplaced is None else int(unplaced) - 1


def find_end(connection: sa.Connection, policy: str, after_id: int, limit: int) -> int:
    """The last signal to read of those after one: so many of the training split lie between, or fewer if no more are there."""
    last = find_last_placed(connection)
    read = _is_said(policy, "train", after_id, last)
    nth = sa.select(signals.c.id).where(*read).order_by(signals.c.id).offset(limit - 1).limit(1)
    found = connection.execute(nth).scalar()
    return max(last, after_id) if found is None else int(found)


def count_said(connection: sa.Connection, policy: str, after_id: int) -> int:
    """How many signals of the training split came after one; they may say nothing that can be learnt from."""
    read = _is_said(policy, "train", after_id, find_last_placed(connection))
    return int(connection.execute(sa.select(sa.func.count()).select_from(signals).where(*read)).scalar_one())


def load_edit_pairs(
    connection: sa.Connection,
    policy: str,
    weight: float,
    after_id: int = 0,
    until_id: int | None = None,
    *,
    split: str = "train",
    reject: Reject = log_rejected,
) -> list[Pair]:
    """Edited texts, each preferred over the answer it was made of. weight: of such a pair beside a choice (1)."""
    pairs = []
    for row in _select_signals(connection, policy, split, after_id, until_id):
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
    connection: sa.Connection, policy: str, split: str, after_id: int = 0, until_id: int | None = None
) -> _Rows:
    columns = signals.c
    query = sa.select(
        columns.id, columns.event_id, columns.prompt_key, columns.split, columns.signal_json.label("body")
    )
    return connection.execute(query.where(*_is_said(policy, split, after_id, until_id)).order_by(columns.id))


def _is_said(policy: str, split: str, after_id: int, until_id: int | None) -> list[sa.ColumnElement[bool]]:
    """What apps sent, after one signal and up to another, without what is in quarantine."""
    columns = signals.c
    set_aside = sa.exists().where(quarantine.c.event_id == columns.event_id)
    where = [_is_of(columns.policy, policy), columns.split == split, columns.id > after_id, columns.kind == "said"]
    until = [] if until_id is None else [columns.id <= until_id]
    return [*where, *until, sa.not_(set_aside)]


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

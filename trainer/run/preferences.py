"""The learner's view of the inbox: which preferences are new, held out, or may be replayed.

Reads rows that the consumer wrote. Skips are left out everywhere, as they say nothing of the answers, and so is what
is in quarantine. A row that cannot be read is given to `reject` and left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from feedback.events import Choice
from feedback.inbox import preferences, quarantine
from trainer.run.rounds import NewPreferences
from trainer.text.pairs import DECISIVE, Pair, Use, explain_use, make_pair
from trainer.text.rejected import Reject, log_rejected

Row = tuple[int, Pair]  # id in the inbox, pair
_QUARANTINED = sa.exists().where(quarantine.c.event_id == preferences.c.event_id)
_USABLE = sa.and_(preferences.c.preferred != "skip", sa.not_(_QUARANTINED))
_DECISIVE = preferences.c.preferred.in_(DECISIVE)
_TRAIN = sa.and_(_USABLE, preferences.c.split == "train")
_HELD_OUT = sa.and_(_USABLE, preferences.c.split != "train")


@dataclass(frozen=True)
class Totals:
    """Usable preferences, the decisive among them, and every choice by what became of it."""

    usable: int
    decisive: int
    uses: dict[Use, int]


@dataclass(frozen=True)
class Unused:
    """A row that waits to be learnt from: its id, and what its weight hangs on."""

    row_id: int
    user: str
    app: str
    chosen_at: float


def count_after(connection: sa.Connection, after_id: int) -> NewPreferences:
    """What came after a preference, whatever its split."""
    row = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(sa.case((_DECISIVE, 1), else_=0)), 0),
            sa.func.coalesce(sa.func.max(preferences.c.id), after_id),
        ).where(preferences.c.id > after_id, _USABLE)
    ).one()
    return NewPreferences(int(row[0]), int(row[1]), int(row[2]))


def find_trigger_time(connection: sa.Connection, after_id: int, nth: int) -> float:
    """When the nth decisive choice after a preference was made; of the newest choice if there are fewer."""
    newer = sa.select(preferences.c.chosen_at).where(preferences.c.id > after_id, _USABLE)
    exact = newer.where(_DECISIVE).order_by(preferences.c.id).offset(nth - 1).limit(1)
    found = connection.execute(exact).scalar()
    if found is None:
        found = connection.execute(newer.order_by(preferences.c.id.desc()).limit(1)).scalar()
    return float(found or 0.0)


def load_unused(connection: sa.Connection, limit: int, reject: Reject = log_rejected) -> list[Row]:
    """The oldest training rows that the reward model has not seen as new."""
    return _load(connection, sa.and_(_TRAIN, preferences.c.used_as_new == 0), reject, limit=limit)


def count_unused(connection: sa.Connection) -> int:
    query = sa.select(sa.func.count()).select_from(preferences).where(_TRAIN, preferences.c.used_as_new == 0)
    return int(connection.execute(query).scalar_one())


def list_unused(connection: sa.Connection) -> list[Unused]:
    """All training rows that the reward model has not seen as new, oldest first."""
    columns = preferences.c
    query = sa.select(columns.id, columns.user, columns.app, columns.chosen_at)
    rows = connection.execute(query.where(_TRAIN, columns.used_as_new == 0).order_by(columns.id))
    return [Unused(*row) for row in rows]


def list_held_out(connection: sa.Connection) -> list[tuple[int, str]]:
    """(id, event id) of the decisive rows that no round and no update may use, oldest first."""
    query = sa.select(preferences.c.id, preferences.c.event_id).where(_HELD_OUT, _DECISIVE)
    return [(row.id, row.event_id) for row in connection.execute(query.order_by(preferences.c.id))]


def list_replayable(connection: sa.Connection, max_replays: int) -> list[int]:
    """Ids of the training rows that were new once and may be replayed again, oldest first."""
    query = sa.select(preferences.c.id).where(
        _TRAIN, preferences.c.used_as_new > 0, preferences.c.used_as_replay < max_replays
    )
    return list(connection.execute(query.order_by(preferences.c.id)).scalars())


def load_ids(connection: sa.Connection, ids: Sequence[int], reject: Reject = log_rejected) -> list[Row]:
    """These rows, in order of their ids."""
    return _load(connection, preferences.c.id.in_(list(ids)), reject)


def load_between(connection: sa.Connection, after_id: int, last_id: int, reject: Reject = log_rejected) -> list[Row]:
    """Decisive training rows with after_id < id <= last_id."""
    is_between = sa.and_(preferences.c.id > after_id, preferences.c.id <= last_id)
    return _load(connection, sa.and_(_TRAIN, _DECISIVE, is_between), reject)


def load_held_out(connection: sa.Connection, limit: int, reject: Reject = log_rejected) -> list[Row]:
    """The newest decisive rows that no round and no update may use."""
    return _load(connection, sa.and_(_HELD_OUT, _DECISIVE), reject, limit=limit, newest=True)


def forget_uses(connection: sa.Connection) -> None:
    """Every row is new again: the reward model begins anew."""
    connection.execute(sa.update(preferences).values(used_as_new=0, used_as_replay=0))


def forget_uses_of(connection: sa.Connection, new: Sequence[int], replayed: Sequence[int]) -> None:
    """Take one use back: of the rows that were new, and of those that were replayed."""
    for column, ids in ((preferences.c.used_as_new, new), (preferences.c.used_as_replay, replayed)):
        used = sa.update(preferences).where(preferences.c.id.in_(list(ids)), column > 0)
        connection.execute(used.values({column: column - 1}))


def count_totals(connection: sa.Connection) -> Totals:
    """One look at the whole inbox, by groups: it is done twice a second."""
    is_used = sa.case((preferences.c.used_as_new > 0, 1), else_=0).label("is_used")
    is_quarantined = sa.case((_QUARANTINED, 1), else_=0).label("is_quarantined")
    groups = (preferences.c.preferred, preferences.c.split, is_used, is_quarantined)
    uses: Counter[Use] = Counter()
    usable = decisive = 0
    counted = sa.select(*groups, sa.func.count()).group_by(*groups)
    for preferred, split, used, quarantined, num in connection.execute(counted):
        uses[explain_use(preferred, split, used, bool(quarantined))] += num
        usable += num if preferred != "skip" else 0
        decisive += num if preferred in DECISIVE else 0
    return Totals(usable, decisive, dict(uses))


def _load(
    connection: sa.Connection,
    where: sa.ColumnElement[bool],
    reject: Reject,
    *,
    limit: int | None = None,
    newest: bool = False,
) -> list[Row]:
    columns = preferences.c
    order = columns.id.desc() if newest else columns.id
    query = sa.select(columns.id, columns.event_id, columns.prompt_key, columns.split, columns.choice_json)
    rows = connection.execute(query.where(where).order_by(order).limit(limit)).all()
    pairs = []
    for row in rows[::-1] if newest else rows:
        try:
            choice = msgspec.json.decode(row.choice_json, type=Choice)
            pair = make_pair(choice, event_id=row.event_id, prompt_key=row.prompt_key, split=row.split)
        except (ValueError, RecursionError) as error:  # bytes that a disk or another release changed
            reject(row.event_id, "load", error)
        else:
            pairs.append((row.id, pair))
    return pairs

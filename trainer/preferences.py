"""The learner's view of the inbox: which preferences are new, held out, or may be replayed.

Reads rows that the consumer wrote. Skips are left out everywhere: they say nothing of the answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from feedback.events import Choice
from feedback.inbox import preferences
from trainer.dataset import DECISIVE, Pair, Use, explain_use, make_pair
from trainer.rounds import NewPreferences

Row = tuple[int, Pair]  # id in the inbox, pair
_USABLE = preferences.c.preferred != "skip"
_DECISIVE = preferences.c.preferred.in_(DECISIVE)
_TRAIN = sa.and_(_USABLE, preferences.c.split == "train")
_HELD_OUT = sa.and_(_USABLE, preferences.c.split != "train")


@dataclass(frozen=True)
class Totals:
    """Usable preferences, the decisive among them, and every choice by what became of it."""

    usable: int
    decisive: int
    uses: dict[Use, int]


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


def load_unused(connection: sa.Connection, limit: int) -> list[Row]:
    """The oldest training rows that the reward model has not seen as new."""
    return _load(connection, sa.and_(_TRAIN, preferences.c.used_as_new == 0), limit=limit)


def count_unused(connection: sa.Connection) -> int:
    query = sa.select(sa.func.count()).select_from(preferences).where(_TRAIN, preferences.c.used_as_new == 0)
    return int(connection.execute(query).scalar_one())


def list_replayable(connection: sa.Connection, max_replays: int) -> list[int]:
    """Ids of the training rows that were new once and may be replayed again, oldest first."""
    query = sa.select(preferences.c.id).where(
        _TRAIN, preferences.c.used_as_new > 0, preferences.c.used_as_replay < max_replays
    )
    return list(connection.execute(query.order_by(preferences.c.id)).scalars())


def load_ids(connection: sa.Connection, ids: Sequence[int]) -> list[Row]:
    """These rows, in order of their ids."""
    return _load(connection, preferences.c.id.in_(list(ids)))


def load_between(connection: sa.Connection, after_id: int, last_id: int) -> list[Row]:
    """Decisive training rows with after_id < id <= last_id."""
    return _load(connection, sa.and_(_TRAIN, _DECISIVE, preferences.c.id > after_id, preferences.c.id <= last_id))


def load_held_out(connection: sa.Connection, limit: int) -> list[Row]:
    """The newest decisive rows that no round and no update may use."""
    return _load(connection, sa.and_(_HELD_OUT, _DECISIVE), limit=limit, newest=True)


def forget_uses(connection: sa.Connection) -> None:
    """Every row is new again: the reward model begins anew."""
    connection.execute(sa.update(preferences).values(used_as_new=0, used_as_replay=0))


def count_totals(connection: sa.Connection) -> Totals:
    """One look at the whole inbox, by groups: it is done twice a second."""
    is_used = sa.case((preferences.c.used_as_new > 0, 1), else_=0).label("is_used")
    groups = (preferences.c.preferred, preferences.c.split, is_used)
    uses: Counter[Use] = Counter()
    usable = decisive = 0
    for preferred, split, used, num in connection.execute(sa.select(*groups, sa.func.count()).group_by(*groups)):
        uses[explain_use(preferred, split, used)] += num
        usable += num if preferred != "skip" else 0
        decisive += num if preferred in DECISIVE else 0
    return Totals(usable, decisive, dict(uses))


def _load(
    connection: sa.Connection, where: sa.ColumnElement[bool], limit: int | None = None, newest: bool = False
) -> list[Row]:
    columns = preferences.c
    order = columns.id.desc() if newest else columns.id
    query = sa.select(columns.id, columns.event_id, columns.prompt_key, columns.split, columns.choice_json)
    rows = connection.execute(query.where(where).order_by(order).limit(limit)).all()
    pairs = [
        (
            row.id,
            make_pair(
                msgspec.json.decode(row.choice_json, type=Choice),
                event_id=row.event_id,
                prompt_key=row.prompt_key,
                split=row.split,
            ),
        )
        for row in rows
    ]
    return pairs[::-1] if newest else pairs

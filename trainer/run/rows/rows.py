"""The learner's view of the inbox: which pairs are new, held out, kept for the auditor, or may be replayed.

Only of one policy, in the order of arrival. Skips are left out everywhere, as they say nothing of the answers, and so is
what is in quarantine, and what has no split yet. A row that cannot be read is given to `reject` and left out. Signals
and demonstrations are signal_queries.py's.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback.database import split_parameters
from feedback.events import Choice
from feedback.inbox import preferences, quarantine
from trainer.run.rounds import NewPreferences
from trainer.text.pairs import DECISIVE, Pair, Use, explain_use, make_pair
from trainer.text.rejected import Reject, log_rejected

MAX_JUDGED = 200  # pairs that measure a version: always the same ones, as far as they are there
_QUARANTINED = sa.exists().where(quarantine.c.event_id == preferences.c.event_id)
_USABLE = sa.and_(preferences.c.preferred != "skip", sa.not_(_QUARANTINED))
_DECISIVE = preferences.c.preferred.in_(DECISIVE)
PAIR_COLUMNS = [preferences.c[name] for name in ("id", "event_id", "prompt_key", "split", "choice_json")]


@dataclass(frozen=True)
class Totals:
    """Usable preferences, the decisive among them, and every choice by what became of it."""

    usable: int
    decisive: int
    uses: dict[Use, int]


def is_usable(policy: str, split: str | None = None) -> sa.ColumnElement[bool]:
    """Rows of a policy, and of one split, that say something and are not set aside."""
    usable = sa.and_(preferences.c.policy == policy, _USABLE)
    return usable if split is None else sa.and_(usable, preferences.c.split == split)


def count_after(connection: sa.Connection, policy: str, after_id: int) -> NewPreferences:
    """What came after a preference, whatever its split."""
    row = connection.execute(
        sa.select(
            sa.func.count(),
            sa.func.coalesce(sa.func.sum(sa.case((_DECISIVE, 1), else_=0)), 0),
            sa.func.coalesce(sa.func.max(preferences.c.id), after_id),
        ).where(preferences.c.id > after_id, is_usable(policy))
    ).one()
    return NewPreferences(int(row[0]), int(row[1]), int(row[2]))


def find_trigger_time(connection: sa.Connection, policy: str, after_id: int, nth: int) -> float:
    """When the nth decisive choice after a preference was made; of the newest choice if there are fewer, 0 without any."""
    newer = sa.select(preferences.c.chosen_at).where(preferences.c.id > after_id, is_usable(policy))
    exact = newer.where(_DECISIVE).order_by(preferences.c.id).offset(nth - 1).limit(1)
    found = connection.execute(exact).scalar()
    if found is None:
        found = connection.execute(newer.order_by(preferences.c.id.desc()).limit(1)).scalar()
    return float(found or 0.0)


def load_unused(connection: sa.Connection, policy: str, limit: int, reject: Reject = log_rejected) -> list[Pair]:
    """The oldest training pairs that the reward model has not seen as new."""
    return _load(connection, sa.and_(is_usable(policy, "train"), preferences.c.used_as_new == 0), reject, limit=limit)


def count_unused(connection: sa.Connection, policy: str) -> int:
    """How many training pairs the reward model has not seen as new."""
    where = sa.and_(is_usable(policy, "train"), preferences.c.used_as_new == 0)
    return int(connection.execute(sa.select(sa.func.count()).select_from(preferences).where(where)).scalar_one())


def list_unused(connection: sa.Connection, policy: str) -> list[int]:
    """Ids of all of them, oldest first."""
    return _list_ids(connection, sa.and_(is_usable(policy, "train"), preferences.c.used_as_new == 0))


def list_replayable(connection: sa.Connection, policy: str, max_replays: int) -> list[int]:
    """Ids of the training pairs that were new once and may be replayed again, oldest first."""
    is_used = sa.and_(preferences.c.used_as_new > 0, preferences.c.used_as_replay < max_replays)
    return _list_ids(connection, sa.and_(is_usable(policy, "train"), is_used))


def load_ids(connection: sa.Connection, policy: str, ids: Sequence[int], reject: Reject = log_rejected) -> list[Pair]:
    """These pairs, in the order of their ids; a skip among them, or another policy's, is left out."""
    is_wanted = [sa.and_(is_usable(policy), preferences.c.id.in_(some)) for some in split_parameters(sorted(ids))]
    return [pair for where in is_wanted for pair in _load(connection, where, reject)]


def load_newest(connection: sa.Connection, policy: str, limit: int, reject: Reject = log_rejected) -> list[Pair]:
    """The newest pairs of any split, the oldest of them first: for what they say of requests, not of answers."""
    newest = sa.select(preferences.c.id).where(is_usable(policy)).order_by(preferences.c.id.desc()).limit(limit)
    return load_ids(connection, policy, list(connection.execute(newest).scalars()), reject)


def load_events(
    connection: sa.Connection, policy: str, event_ids: Sequence[str], reject: Reject = log_rejected
) -> list[Pair]:
    """The pairs of these events, in the order of arrival; a skip among them, or another policy's, is left out."""
    columns = preferences.c
    some = [sa.select(columns.id).where(columns.event_id.in_(each)) for each in split_parameters(event_ids)]
    return load_ids(
        connection, policy, [row_id for query in some for row_id in connection.execute(query).scalars()], reject
    )


def load_held_out(
    connection: sa.Connection, policy: str, limit: int = MAX_JUDGED, reject: Reject = log_rejected
) -> list[Pair]:
    """Decisive pairs that no round and no update may use: a fixed sample by hash, in the order of arrival."""
    return _load_sample(connection, policy, sa.and_(is_usable(policy, "heldout"), _DECISIVE), limit, reject)


def load_anchors(
    connection: sa.Connection, policy: str, limit: int, last_id: int, reject: Reject = log_rejected
) -> list[Pair]:
    """Training pairs up to one of them by whose answers rewards are anchored: a fixed sample by hash."""
    where = sa.and_(is_usable(policy, "train"), preferences.c.id <= last_id)
    return _load_sample(connection, policy, where, limit, reject)


def load_auditor(
    connection: sa.Connection, policy: str, limit: int | None = None, reject: Reject = log_rejected
) -> list[Pair]:
    """Pairs of the auditor, ties too, which no one else may use; the same sample for the same limit, or all."""
    return _load_sample(connection, policy, is_usable(policy, "auditor"), limit, reject)


def choose_fixed(event_ids: Sequence[str], limit: int | None) -> list[str]:
    """The `limit` of least hash: as rows come, few of a sample change, and none for its age."""
    if limit is None or len(event_ids) <= limit:
        return list(event_ids)
    return sorted(event_ids, key=lambda event_id: hashlib.sha256(event_id.encode()).digest())[:limit]


def forget_uses(connection: sa.Connection, policy: str) -> None:
    """Every pair of a policy is new again: its reward model begins anew."""
    connection.execute(
        sa.update(preferences).where(preferences.c.policy == policy).values(used_as_new=0, used_as_replay=0)
    )


def forget_uses_of(connection: sa.Connection, new: Sequence[int], replayed: Sequence[int]) -> None:
    """Take one use back: of the rows that were new, and of those that were replayed."""
    for column, ids in ((preferences.c.used_as_new, new), (preferences.c.used_as_replay, replayed)):
        for some in split_parameters(ids):
            used = sa.update(preferences).where(preferences.c.id.in_(some), column > 0)
            connection.execute(used.values({column: column - 1}))


def count_totals(connection: sa.Connection, policy: str) -> Totals:
    """One look at a policy's whole inbox, by groups of an index: it is done twice a second."""
    columns = preferences.c
    is_used = sa.case((columns.used_as_new > 0, 1), else_=0).label("is_used")
    groups = (columns.preferred, columns.split, is_used)
    counted = sa.select(*groups, sa.func.count()).where(columns.policy == policy).group_by(*groups)
    uses: Counter[Use] = Counter()
    usable = decisive = 0
    for preferred, split, used, num in connection.execute(counted):
        uses[explain_use(preferred, split, used)] += num
        usable += num if preferred != "skip" else 0
        decisive += num if preferred in DECISIVE else 0
    set_aside = sa.select(*groups).join(quarantine, quarantine.c.event_id == columns.event_id)
    for preferred, split, used in connection.execute(set_aside.where(columns.policy == policy)):
        uses[explain_use(preferred, split, used)] -= 1
        uses["quarantined"] += 1
    return Totals(usable, decisive, {use: num for use, num in uses.items() if num})


def _list_ids(connection: sa.Connection, where: sa.ColumnElement[bool]) -> list[int]:
    return list(connection.execute(sa.select(preferences.c.id).where(where).order_by(preferences.c.id)).scalars())


def _load_sample(
    connection: sa.Connection, policy: str, where: sa.ColumnElement[bool], limit: int | None, reject: Reject
) -> list[Pair]:
    query = sa.select(preferences.c.event_id, preferences.c.id).where(where)
    ids = {row.event_id: row.id for row in connection.execute(query.order_by(preferences.c.id))}
    return load_ids(connection, policy, [ids[event_id] for event_id in choose_fixed(list(ids), limit)], reject)


def _load(
    connection: sa.Connection, where: sa.ColumnElement[bool], reject: Reject, *, limit: int | None = None
) -> list[Pair]:
    query = sa.select(*PAIR_COLUMNS).where(where).order_by(preferences.c.id).limit(limit)
    read = (read_pair(row, reject) for row in connection.execute(query).all())
    return [pair for pair in read if pair is not None]


def read_pair(row: Any, reject: Reject) -> Pair | None:
    """The pair of a row of PAIR_COLUMNS; None, and rejected, if it cannot be read."""
    try:
        choice = msgspec.json.decode(row.choice_json, type=Choice)
        return make_pair(choice, event_id=row.event_id, prompt_key=row.prompt_key, split=row.split, row_id=row.id)
    except (ValueError, RecursionError) as error:  # bytes that a disk or another release changed
        reject(row.event_id, "load", error)
        return None

"""Counts what is on the road from a choice to the trainer: the gateway's side, the log, the trainer's side.

Reads only, each side in one transaction; the sides are looked at one after the other, so in a running system they may
differ by what moved in between.
"""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import msgspec
import sqlalchemy as sa

from feedback import inbox, signals
from feedback.choices import choices, comparisons, count_outbox, outbox
from feedback.log.base import Log
from feedback.quality.satisfaction import Satisfaction

DAY_S = 86_400

Counts = dict[str, int]


class GatewayCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What was shown and said, and what of it waits for the log. Days are of UTC."""

    comparisons: int
    choices: int
    signals: int
    by_policy: Counts
    by_app: Counts
    by_verdict: Counts
    by_asked: Counts
    by_share: Counts
    by_day: Counts
    outbox: int
    outbox_oldest_age_s: float | None


class LogCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One partition: its bounds, what the trainer's group published, and how far its store is."""

    partition: int
    begin: int
    end: int
    committed: int | None
    stored: int | None
    lag: int


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Records that nobody read: retention took them, or a replay began behind them."""

    partition: int
    from_offset: int
    to_offset: int
    found_at: float


class TrainerCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What arrived. Dead letters are those not discarded."""

    preferences: int
    signals: int
    by_policy: Counts
    by_app: Counts
    by_verdict: Counts
    by_asked: Counts
    by_share: Counts
    by_split: Counts
    by_kind: Counts
    by_day: Counts
    dead_letters: Counts
    discarded: int
    gaps: list[Gap]


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Each side None where it is not there; lag is the sum over the partitions. satisfaction: of the installation's policy."""

    topic: str
    gateway: GatewayCounts | None
    log: list[LogCounts] | None
    lag: int | None
    trainer: TrainerCounts | None
    satisfaction: list[Satisfaction] = []


def count_gateway(connection: sa.Connection, now: float) -> GatewayCounts:
    """The gateway's side of the road."""
    oldest = connection.execute(sa.select(sa.func.min(outbox.c.created_at))).scalar()
    joined = choices.join(comparisons, choices.c.comparison_id == comparisons.c.id)
    return GatewayCounts(
        comparisons=_count(connection, comparisons),
        choices=_count(connection, choices),
        signals=_count(connection, signals.signals),
        by_policy=_count_by(connection, comparisons.c.policy, joined),
        by_app=_count_by(connection, comparisons.c.app, joined),
        by_verdict=_count_by(connection, choices.c.preferred, joined),
        by_asked=_count_by(connection, comparisons.c.asked, joined),
        by_share=_count_by_share(connection, comparisons, joined),
        by_day=_count_by_day(connection, choices.c.chosen_at, choices),
        outbox=count_outbox(connection),
        outbox_oldest_age_s=None if oldest is None else max(0.0, now - oldest),
    )


def count_log(log: Log, topic: str, group: str, stored: dict[int, int] | None) -> list[LogCounts]:
    """Each partition of the topic. stored: the offsets in the trainer's store, None if there is no store.

    The lag follows from the store where there is one: it alone is the truth of what was read.
    """
    committed = log.committed(group, topic)
    rows = []
    for partition in log.partitions(topic):
        begin, end = log.bounds(topic, partition)
        read = committed.get(partition) if stored is None else stored.get(partition)
        rows.append(
            LogCounts(
                partition=partition,
                begin=begin,
                end=end,
                committed=committed.get(partition),
                stored=None if stored is None else stored.get(partition),
                lag=max(0, end - max(begin, read or 0)),
            )
        )
    return rows


def count_trainer(connection: sa.Connection, topic: str) -> TrainerCounts:
    """The trainer's side of the road."""
    table, letters, marks = inbox.preferences, inbox.dead_letters, inbox.discarded_letters
    has_marks = sa.inspect(connection).has_table(marks.name)  # a store that no newer release has opened lacks it
    marked = [marks.c[name] == letters.c[name] for name in ("topic", "partition", "record_offset")]
    waiting = sa.not_(sa.exists().where(*marked)) if has_marks else sa.true()
    gaps = connection.execute(
        sa.select(inbox.gaps).where(inbox.gaps.c.topic == topic).order_by(inbox.gaps.c.found_at)
    ).all()
    return TrainerCounts(
        preferences=_count(connection, table),
        signals=_count(connection, inbox.signals),
        by_policy=_count_by(connection, table.c.policy, table),
        by_app=_count_by(connection, table.c.app, table),
        by_verdict=_count_by(connection, table.c.preferred, table),
        by_asked=_count_by(connection, table.c.asked, table),
        by_share=_count_by_share(connection, table, table),
        by_split=_count_by(connection, table.c.split, table),
        by_kind=_count_by(connection, inbox.signals.c.kind, inbox.signals),
        by_day=_count_by_day(connection, table.c.chosen_at, table),
        dead_letters=_count_by(connection, letters.c.error, letters, waiting),
        discarded=_count(connection, marks) if has_marks else 0,
        gaps=[
            Gap(partition=row.partition, from_offset=row.from_offset, to_offset=row.to_offset, found_at=row.found_at)
            for row in gaps
        ],
    )


def _count(connection: sa.Connection, table: sa.Table) -> int:
    return connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def _count_by(
    connection: sa.Connection,
    column: sa.ColumnElement[Any],
    source: sa.FromClause,
    condition: sa.ColumnElement[bool] | None = None,
) -> Counts:
    """Rows by a column's value, the most frequent first."""
    count = sa.func.count()
    query = sa.select(column, count).select_from(source).group_by(column).order_by(count.desc(), column)
    if condition is not None:
        query = query.where(condition)
    return {str(value): num for value, num in connection.execute(query)}


def _count_by_share(connection: sa.Connection, table: sa.Table, source: sa.FromClause) -> Counts:
    """How the two answers were picked; nothing from a database that no newer release has opened."""
    has_share = "share" in {column["name"] for column in sa.inspect(connection).get_columns(table.name)}
    return _count_by(connection, table.c.share, source) if has_share else {}


def _count_by_day(connection: sa.Connection, column: sa.ColumnElement[float], source: sa.FromClause) -> Counts:
    day = sa.func.floor(column / DAY_S)
    query = sa.select(day, sa.func.count()).select_from(source).group_by(day).order_by(day)
    return {_format_day(int(value)): num for value, num in connection.execute(query)}


def _format_day(day: int) -> str:
    return (date(1970, 1, 1) + timedelta(days=day)).isoformat()

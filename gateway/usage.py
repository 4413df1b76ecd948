"""The table from which gateway workers lease what a key may use: one row per key, kind and window.

`used` is what was leased and not handed back, so it never passes the limit but for debts. A worker that dies keeps its
unspent leases: the key gets less in that window, never more. Callers serialise their own transactions.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from feedback.database import metadata
from gateway.allowance import DAY_S, MINUTE_S, Ask, Grant, decide_grant

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(10), primary_key=True),  # requests, tokens, budget (in billionths)
    sa.Column("length_s", sa.Integer, primary_key=True),
    sa.Column("starts_at", sa.BigInteger, primary_key=True),  # epoch seconds, UTC
    sa.Column("used", sa.BigInteger, nullable=False),
)

_KEPT_S = {MINUTE_S: 3600, DAY_S: 8 * DAY_S}  # a clock that goes back so far finds its rows again
_SWEPT_AT_ONCE = 1000


def exchange_leases(conn: sa.Connection, asks: Sequence[Ask]) -> list[Grant]:
    """Book every ask, and return what each was granted, in the order of `asks`.

    Rows are locked in the order of their keys, so that two workers never wait for each other in a circle.
    """
    grants: list[Grant | None] = [None] * len(asks)
    for index in sorted(range(len(asks)), key=lambda index: asks[index][:4]):
        ask = asks[index]
        used = _lock_row(conn, ask)
        granted = decide_grant(ask, used)
        if granted:
            conn.execute(sa.update(usage).where(*_is_row(ask)).values(used=max(0, used + granted)))
        grants[index] = Grant(granted, ask.limit - used - granted)
    return [grant for grant in grants if grant is not None]


def forget_usage(conn: sa.Connection, now: float) -> int:
    """Delete some rows of windows long over; return how many."""
    is_old = sa.or_(
        *(
            sa.and_(usage.c.length_s == length_s, usage.c.starts_at < int(now) - kept_s)
            for length_s, kept_s in _KEPT_S.items()
        )
    )
    key = (usage.c.key_id, usage.c.kind, usage.c.length_s, usage.c.starts_at)
    # Two workers sweep at once without waiting for each other.
    old = sa.select(*key).where(is_old).limit(_SWEPT_AT_ONCE).with_for_update(skip_locked=True)
    return conn.execute(sa.delete(usage).where(sa.tuple_(*key).in_(old))).rowcount


def _lock_row(conn: sa.Connection, ask: Ask) -> int:
    """Make the row if need be and hold it until the commit; return `used`."""
    dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
    key_id, kind, length_s, starts_at = ask[:4]
    insert = dialect.insert(usage).values(key_id=key_id, kind=kind, length_s=length_s, starts_at=starts_at, used=0)
    key = (usage.c.key_id, usage.c.kind, usage.c.length_s, usage.c.starts_at)
    upsert = insert.on_conflict_do_update(index_elements=key, set_={"used": usage.c.used}).returning(usage.c.used)
    return int(conn.execute(upsert).scalar_one())


def _is_row(ask: Ask) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        usage.c.key_id == ask.key_id,
        usage.c.kind == ask.kind,
        usage.c.length_s == ask.length_s,
        usage.c.starts_at == ask.starts_at,
    )

"""The table from which gateways lease what a key may use: one row per key, kind and window.

`used` is what was leased and not handed back, so it never passes the limit but for debts. A gateway that dies keeps its
unspent leases: the key gets less in that window, never more. Callers serialise their own transactions.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from feedback.database import metadata
from gateway.access.limits.leases import DAY_S, MINUTE_S, Grant, LeaseRequest, Row, decide_grant

usage = sa.Table(
    "usage",
    metadata,
    sa.Column("key_id", sa.String(32), primary_key=True),
    sa.Column("kind", sa.String(10), primary_key=True),  # requests, tokens, budget (in billionths)
    sa.Column("length_s", sa.Integer, primary_key=True),
    sa.Column("starts_at", sa.BigInteger, primary_key=True),  # epoch seconds, UTC
    sa.Column("used", sa.BigInteger, nullable=False),
)

_KEY = (usage.c.key_id, usage.c.kind, usage.c.length_s, usage.c.starts_at)
_NAMES = tuple(column.name for column in _KEY)
_MATCHED = tuple(f"its_{name}" for name in _NAMES)
_SET_USED = (
    sa.update(usage)
    .where(*(column == sa.bindparam(name) for column, name in zip(_KEY, _MATCHED, strict=True)))
    .values(used=sa.bindparam("now_used"))
)
_KEPT_S = {MINUTE_S: 3600, DAY_S: 8 * DAY_S}  # a clock that goes back so far finds its rows again
_SWEPT_AT_ONCE = 1000


def exchange_leases(conn: sa.Connection, requests: Sequence[LeaseRequest]) -> list[Grant]:
    """Book every request, and return what each was granted, in their order.

    Rows are locked in the order of their keys, so that two gateways never wait for each other in a circle.
    """
    before = _lock_rows(conn, sorted({request.row for request in requests}))
    used = dict(before)
    grants = []
    for request in requests:
        granted = decide_grant(request, used[request.row])
        used[request.row] = max(0, used[request.row] + granted)
        grants.append(Grant(granted, request.limit - used[request.row]))
    changed = [dict(zip(_MATCHED, row, strict=True), now_used=used[row]) for row in used if used[row] != before[row]]
    if changed:
        conn.execute(_SET_USED, changed)
    return grants


def forget_usage(conn: sa.Connection, now: float) -> int:
    """Delete some rows of windows long over; return how many."""
    is_old = sa.or_(
        *(
            sa.and_(usage.c.length_s == length_s, usage.c.starts_at < int(now) - kept_s)
            for length_s, kept_s in _KEPT_S.items()
        )
    )
    # Two gateways sweep at once without waiting for each other.
    old = sa.select(*_KEY).where(is_old).limit(_SWEPT_AT_ONCE).with_for_update(skip_locked=True)
    return conn.execute(sa.delete(usage).where(sa.tuple_(*_KEY).in_(old))).rowcount


def _lock_rows(conn: sa.Connection, rows: Sequence[Row]) -> dict[Row, int]:
    """Make the rows that are missing and hold all until the commit; return what is `used` of each."""
    dialect = postgresql if conn.dialect.name == "postgresql" else sqlite
    upsert = dialect.insert(usage).on_conflict_do_update(index_elements=_KEY, set_={"used": usage.c.used})
    values = [{**dict(zip(_NAMES, row, strict=True)), "used": 0} for row in rows]
    found = conn.execute(upsert.returning(*_KEY, usage.c.used), values)
    return {(key_id, kind, length_s, starts_at): used for key_id, kind, length_s, starts_at, used in found}

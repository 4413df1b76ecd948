"""Forgets what old comparisons showed: prompt and answers go, who chose what and when stays.

So a comparison stays unique for ever, a choice made again is still answered and evidence still counts. What is on its way to the
log is untouched: outbox rows hold their own copy. Neither the log nor the trainer's inbox is looked after here.
"""

from __future__ import annotations

import sqlalchemy as sa

from feedback.choices import comparisons, is_remembered

_OLD = (
    sa.select(comparisons.c.id)
    .where(comparisons.c.expires_at < sa.bindparam("before"), is_remembered)
    .order_by(comparisons.c.expires_at)
    .limit(sa.bindparam("num"))
)
_FORGET = sa.update(comparisons).where(comparisons.c.id.in_(_OLD)).values(body=b"")


def forget_comparisons(connection: sa.Connection, before: float, num: int) -> int:
    """Empty the bodies of comparisons that ran out before that time (epoch seconds), the oldest `num` at most; how many."""
    return connection.execute(_FORGET, {"before": before, "num": num}).rowcount

"""Who was shown a comparison, and who skipped one, since a time, as all gateways that share the database wrote it."""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy import Connection

from feedback.choices import choices, comparisons

_SINCE = sa.bindparam("since", type_=sa.Double)
_LIMIT = sa.bindparam("most", type_=sa.Integer)
_SHOWN = (
    sa.select(comparisons.c.id, comparisons.c.user, comparisons.c.created_at)
    .where(comparisons.c.created_at > _SINCE, comparisons.c.user != "")
    .order_by(comparisons.c.created_at.desc())
    .limit(_LIMIT)
)
_SKIPPED = (
    sa.select(comparisons.c.user, choices.c.chosen_at)
    .select_from(choices.join(comparisons, choices.c.comparison_id == comparisons.c.id))
    .where(sa.text("choices.preferred = 'skip'"), choices.c.chosen_at > _SINCE, comparisons.c.user != "")
)


class Shown(NamedTuple):
    """A comparison that a user was shown. at: epoch seconds."""

    comparison: str
    user: str
    at: float


def list_shown(conn: Connection, since: float, most: int) -> list[Shown]:
    """The comparisons since then, the newest first, so many at most."""
    return [Shown(*row) for row in conn.execute(_SHOWN, {"since": since, "most": most})]


def list_skips(conn: Connection, since: float) -> list[tuple[str, float]]:
    """(user, when) of every skip since then."""
    return [(row.user, row.chosen_at) for row in conn.execute(_SKIPPED, {"since": since})]

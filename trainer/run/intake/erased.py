"""Finds what a model has learnt from and the store no longer holds: rows of a person who asked to be forgotten.

Whoever erases need not tell the models: they are asked what they know before they learn again. Looks only where rows have gone
since the last look. Removes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from feedback.database import split_parameters
from feedback.inbox import preferences, signals


class ErasedRows:
    """One model's view of the store. Used by the learner's thread alone."""

    def __init__(self, database: sa.Engine) -> None:
        self._database = database
        self._gone = -1  # ids that no row has, at the last look

    def look_again(self) -> None:
        """The model is another now, or was set back: the next `find` looks at all that it knows."""
        self._gone = -1

    def find(self, known: Sequence[str]) -> list[str]:
        """Those of these event ids whose rows are gone; [] without looking if none went since the last call."""
        with self._database.connect() as connection:
            gone = _count_gone(connection)
            if gone == self._gone:
                return []
            held: set[str] = set()
            for some in split_parameters(known):
                for table in (preferences, signals):
                    query = sa.select(table.c.event_id).where(table.c.event_id.in_(some))
                    held |= set(connection.execute(query).scalars())
        self._gone = gone
        return [event_id for event_id in known if event_id not in held]


def _count_gone(connection: sa.Connection) -> int:
    """How many ids up to the newest no row has: it changes when rows are erased, and hardly when they come."""
    total = 0
    for table in (preferences, signals):
        newest, num = connection.execute(
            sa.select(sa.func.coalesce(sa.func.max(table.c.id), 0), sa.func.count()).select_from(table)
        ).one()
        total += int(newest) - int(num)
    return total

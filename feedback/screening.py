"""Duels whose answers a harm screen has yet to look at, and what it says of them.

A verdict is JSON by arm, {"canary": false, "stable": true}; `{}` where the screen failed, so that it is not asked for ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import msgspec
import sqlalchemy as sa

from feedback.choices import comparisons
from feedback.events import Comparison

_UNSCREENED = (
    sa.select(comparisons.c.body)
    .where(
        comparisons.c.rollout.in_(sa.bindparam("rollouts", expanding=True)),
        comparisons.c.canary_first.is_not(None),
        comparisons.c.screened.is_(None),
    )
    .order_by(comparisons.c.created_at)
    .limit(sa.bindparam("num"))
)
_STORE = (
    sa.update(comparisons)
    .where(comparisons.c.id == sa.bindparam("comparison"))
    .values(screened=sa.bindparam("verdict"))
)


def load_unscreened(connection: sa.Connection, rollouts: Sequence[str], num: int) -> list[Comparison]:
    """The oldest duels of these rollouts that no screen has looked at, `num` at most."""
    rows = connection.execute(_UNSCREENED, {"rollouts": list(rollouts), "num": num})
    return [msgspec.json.decode(body, type=Comparison) for body in rows.scalars()]


def store_screened(connection: sa.Connection, verdicts: Mapping[str, Mapping[str, bool]]) -> None:
    """verdicts: by comparison, whether each arm's answer is harmful; empty where the screen failed."""
    rows = [{"comparison": name, "verdict": msgspec.json.encode(said).decode()} for name, said in verdicts.items()]
    if rows:
        connection.execute(_STORE, rows)


@lru_cache(maxsize=8)
def read_screened(verdict: str) -> tuple[bool, bool] | None:
    """(the canary's is harmful, stable's is harmful); None where the screen failed."""
    said = msgspec.json.decode(verdict, type=dict[str, bool])
    return (said["canary"], said["stable"]) if said else None

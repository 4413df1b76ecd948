"""The duels of a rollout from the canary's side, read from comparisons and the choices made of them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import sqlalchemy as sa

from feedback.choices import choices, comparisons


class DuelRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A duel from the canary's side: outcome +1 won, 0 tie or both bad, -1 lost.

    chosen_at is None, and outcome 0, where nothing was said: not answered (yet), or skipped.
    """

    comparison_id: str
    user: str
    asked_at: float
    chosen_at: float | None
    outcome: int
    both_bad: bool
    harmful: bool
    canary_first: bool


_DUELS = (  # built once: it runs at every look
    sa.select(
        comparisons.c.id,
        comparisons.c.user,
        comparisons.c.created_at,
        comparisons.c.canary_first,
        choices.c.preferred,
        choices.c.harmful,
        choices.c.chosen_at,
    )
    .select_from(
        comparisons.outerjoin(choices, (choices.c.comparison_id == comparisons.c.id) & (choices.c.preferred != "skip"))
    )
    .where(comparisons.c.rollout == sa.bindparam("rollout"), comparisons.c.canary_first.is_not(None))
    .order_by(comparisons.c.user, comparisons.c.created_at, comparisons.c.id)
)


def load_duels(connection: sa.Connection, rollout_id: str) -> Iterator[DuelRow]:
    """The rollout's duels, decided or not: user by user, each one's in the order in which they were asked."""
    rows = connection.execute(_DUELS, {"rollout": rollout_id})
    return (
        DuelRow(
            comparison_id=comparison_id,
            user=user,
            asked_at=asked_at,
            chosen_at=chosen_at,
            outcome=_judge_for_canary(preferred, canary_first),
            both_bad=preferred == "both_bad",
            harmful=bool(harmful),
            canary_first=canary_first,
        )
        for comparison_id, user, asked_at, canary_first, preferred, harmful, chosen_at in rows
    )


def _judge_for_canary(preferred: str | None, canary_first: bool) -> int:
    if preferred not in ("first", "second"):
        return 0
    return 1 if (preferred == "first") == canary_first else -1

"""The duels of a rollout from the canary's side: comparisons with the choices made of them, and those that failed.

A duel with a failed candidate was never shown: nobody chooses, that candidate has lost, and it is stored here alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import msgspec
import sqlalchemy as sa

from feedback.choices import choices, comparisons
from feedback.database import insert_missing, metadata
from feedback.screening import read_screened

failed_duels = sa.Table(
    "failed_duels",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("rollout", sa.Text, nullable=False, index=True),
    sa.Column("user", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("outcome", sa.Integer, nullable=False),
)


class FailedDuel(msgspec.Struct, frozen=True):
    """A duel of which one candidate failed, or both. outcome from the canary's side: +1, -1, or 0 for both."""

    id: str
    rollout: str
    user: str
    at: float
    outcome: int


class DuelRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A duel from the canary's side: outcome +1 won, 0 tie or both bad, -1 lost.

    chosen_at is None, and outcome 0, where nothing was said: not answered (yet), or skipped, and even then harmful may be said.
    failed: a candidate failed, so it was decided (at chosen_at) without a choice, and no order was shown. tags: what the app said of
    the request, by name. differences: between both answers, the canary's less stable's, by trait (answer_traits.py).
    screened: whether a harm screen calls the canary's and stable's harmful; None if it has not looked, or failed.
    """

    comparison_id: str
    user: str
    asked_at: float
    chosen_at: float | None
    outcome: int
    both_bad: bool
    harmful: bool
    canary_first: bool
    skipped: bool = False
    failed: bool = False
    tags: tuple[tuple[str, str], ...] = ()
    differences: tuple[tuple[str, float], ...] = ()
    screened: tuple[bool, bool] | None = None


_SHOWN = (
    sa.select(
        comparisons.c.id,
        comparisons.c.user,
        comparisons.c.created_at,
        comparisons.c.canary_first,
        choices.c.preferred,
        choices.c.harmful,
        sa.case((choices.c.preferred != "skip", choices.c.chosen_at)).label("chosen_at"),
        sa.null().label("outcome"),
        comparisons.c.tags,
        comparisons.c.differences,
        comparisons.c.screened,
    )
    .select_from(comparisons.outerjoin(choices, choices.c.comparison_id == comparisons.c.id))
    .where(comparisons.c.rollout.in_(sa.bindparam("rollouts", expanding=True)), comparisons.c.canary_first.is_not(None))
)
_FAILED = sa.select(
    failed_duels.c.id,
    failed_duels.c.user,
    failed_duels.c.at,
    sa.false(),
    sa.null(),
    sa.false(),
    failed_duels.c.at,
    failed_duels.c.outcome,
    sa.null(),
    sa.null(),
    sa.null(),
).where(failed_duels.c.rollout.in_(sa.bindparam("rollouts", expanding=True)))
_ANY_HARM = sa.select(sa.literal(1)).select_from(choices).where(choices.c.harmful).limit(1)
_DUELS = sa.union_all(_SHOWN, _FAILED).order_by("user", "created_at", "id")  # built once: it runs at every look


def store_failed_duels(connection: sa.Connection, duels: Sequence[FailedDuel]) -> None:
    """Storing the same one again changes nothing."""
    insert_missing(connection, failed_duels, [msgspec.structs.asdict(duel) for duel in duels])


def load_duels(connection: sa.Connection, rollouts: Sequence[str]) -> Iterator[DuelRow]:
    """The duels of these rollouts, decided or not: user by user, each one's in the order in which they were asked."""
    rows = connection.execute(_DUELS, {"rollouts": list(rollouts)})
    return (
        DuelRow(
            comparison_id=comparison_id,
            user=user,
            asked_at=asked_at,
            chosen_at=chosen_at,
            outcome=_judge_for_canary(preferred, canary_first) if outcome is None else outcome,
            both_bad=preferred == "both_bad",
            harmful=bool(harmful),
            skipped=preferred == "skip",
            canary_first=canary_first,
            failed=outcome is not None,
            tags=_read_tags(tags) if tags else (),
            differences=_read_differences(differences) if differences else (),
            screened=read_screened(screened) if screened else None,
        )
        for (
            comparison_id,
            user,
            asked_at,
            canary_first,
            preferred,
            harmful,
            chosen_at,
            outcome,
            tags,
            differences,
            screened,
        ) in rows
    )


@lru_cache(maxsize=4096)  # few are different, and they are read at every look
def _read_tags(tags: str) -> tuple[tuple[str, str], ...]:
    return tuple(msgspec.json.decode(tags, type=dict[str, str]).items())


@lru_cache(maxsize=4096)
def _read_differences(differences: str) -> tuple[tuple[str, float], ...]:
    return tuple(msgspec.json.decode(differences, type=dict[str, float]).items())


def _judge_for_canary(preferred: str | None, canary_first: bool) -> int:
    if preferred not in ("first", "second"):
        return 0
    return 1 if (preferred == "first") == canary_first else -1


def name_outcome(preferred: str, *, canary_first: bool) -> str:
    """A decided duel from the canary's side: "win", "loss", "tie" or "both_bad"."""
    return {1: "win", -1: "loss", 0: preferred}[_judge_for_canary(preferred, canary_first)]


def has_reported_harm(connection: sa.Connection) -> bool:
    """Whether anybody has ever called an answer harmful."""
    return connection.execute(_ANY_HARM).first() is not None

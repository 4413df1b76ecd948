"""Reads a rollout's duels from the database in the form that the evidence takes."""

from sqlalchemy import Connection

from feedback.duels import DuelRow, load_duels
from gateway.rollout.evidence import Duel


def read_duels(conn: Connection, rollout: str) -> list[Duel]:
    """Return the duels of known users, decided or not, in the order they were asked."""
    return [_convert(row) for row in load_duels(conn, rollout) if row.user]


def _convert(row: DuelRow) -> Duel:
    # A harm flag is of the pair: it is held against the candidate that was not preferred, or against both.
    return Duel(
        user=row.user,
        asked_at=row.asked_at,
        chosen_at=row.chosen_at,
        outcome=row.outcome,
        both_bad=row.both_bad,
        harmful_canary=row.harmful and row.outcome <= 0,
        harmful_stable=row.harmful and row.outcome >= 0,
        canary_first=row.canary_first,
    )

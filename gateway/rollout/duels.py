"""Reads a rollout's duels from the database, summed up user by user: no more than one user's are ever held."""

from itertools import groupby
from operator import attrgetter

from sqlalchemy import Connection

from feedback.duels import DuelRow, load_duels
from gateway.rollout.pure.users import Duel, Voter, sum_up


def read_voters(conn: Connection, rollout: str, *, cap: int, window_s: float) -> list[Voter]:
    """The known users who were asked, whether they have chosen or not."""
    duels = (_convert(row) for row in load_duels(conn, rollout) if row.user)
    return [sum_up(list(own), cap=cap, window_s=window_s) for _, own in groupby(duels, attrgetter("user"))]


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

"""The numbers of checkpoints: each is reserved in the database before it is used, and confirmed once its checkpoint is whole.

So two trainers never give the same number, and what a trainer published after it had lost its lease counts for nothing: its number
is never confirmed. A directory from before numbers were kept has no row here, and counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from feedback.inbox import metadata
from trainer.run import rounds

numbers = sa.Table(
    "checkpoint_numbers",
    metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("round", sa.Integer),  # None for checkpoint 0, which no round made
    sa.Column("fence", sa.Integer, nullable=False),  # of the trainer that reserved it
    sa.Column("checkpoint", sa.Text),  # the id, once it is confirmed
)


@dataclass(frozen=True)
class Named:
    """A checkpoint's directory, by what its manifest says; round: that made it, if one did."""

    number: int
    checkpoint: str
    round: int | None


def reserve(connection: sa.Connection, round_number: int | None, fence: int, taken: Iterable[int]) -> int:
    """The number for a round's checkpoint: above all that were ever given, and above `taken`.

    One that the same trainer reserved for the same round, and did not use, is given again.
    """
    last = connection.execute(sa.select(numbers).order_by(numbers.c.number.desc()).limit(1)).first()
    highest = max([-1, *taken])
    if last and last.number > highest and (last.round, last.fence, last.checkpoint) == (round_number, fence, None):
        return int(last.number)
    number = max(highest, last.number if last else -1) + 1
    connection.execute(sa.insert(numbers).values(number=number, round=round_number, fence=fence))
    return number


def confirm(connection: sa.Connection, number: int, checkpoint: str) -> None:
    """The checkpoint is whole, and counts."""
    connection.execute(sa.update(numbers).where(numbers.c.number == number).values(checkpoint=checkpoint))


def list_uncounted(connection: sa.Connection, found: Iterable[Named]) -> list[Named]:
    """Those that somebody reserved a number for and never confirmed."""
    known = {row.number: row.checkpoint for row in connection.execute(sa.select(numbers))}
    return [each for each in found if each.number in known and known[each.number] != each.checkpoint]


def settle(connection: sa.Connection, found: Iterable[Named]) -> None:
    """Confirm what a crash left unconfirmed: its round is open still, or no round made it."""
    opened = rounds.find_open_round(connection)
    for each in list_uncounted(connection, found):
        if each.round is None or (opened is not None and each.round == opened.number):
            free = (numbers.c.number == each.number, numbers.c.checkpoint.is_(None))
            connection.execute(sa.update(numbers).where(*free).values(checkpoint=each.checkpoint))

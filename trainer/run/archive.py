"""What is on record of rounds, checkpoints and reports, for the status server's threads. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from trainer.run import lineage, rounds
from trainer.run.checkpoints import Published
from trainer.run.report import name_report

MAX_ROUNDS = 1000


class RoundArchive:
    """Over the trainer's database and its directory of checkpoints. list_published reads the latter."""

    def __init__(self, database: sa.Engine, checkpoints_dir: Path, list_published: Callable[[], Sequence[Published]]):
        self._database, self._root, self._list_published = database, checkpoints_dir, list_published

    def list_rounds(self) -> list[dict[str, Any]]:
        """Finished rounds, oldest first."""
        with self._database.connect() as connection:
            return rounds.list_finished(connection, MAX_ROUNDS)

    def find_round(self, number: int) -> dict[str, Any] | None:
        """All that is on record of one round, with how many rows its checkpoint learnt from."""
        with self._database.connect() as connection:
            found = rounds.find_round(connection, number)
            if found is None:
                return None
            checkpoint = found["checkpoint"]
            num_rows = len(lineage.list_rows(connection, checkpoint)) if checkpoint else 0
        return {**found, "num_rows": num_rows, "has_report": self.find_report(number) is not None}

    def find_report(self, number: int) -> Path | None:
        """The report of a finished round, if it was written."""
        with self._database.connect() as connection:
            found = rounds.find_round(connection, number)
        if found is None:
            return None
        path = self._root / "reports" / name_report(number, found["checkpoint"])
        return path if path.is_file() else None

    def trace_user(self, user: str) -> list[dict[str, Any]]:
        """Which checkpoints learnt from a person's rows, themselves or through what they began from."""
        with self._database.connect() as connection:
            own = lineage.count_rows_of_user(connection, user)
        return [asdict(learnt) for learnt in lineage.trace_learnt(own, self._list_published())]

"""What is on record of rounds, checkpoints and reports, for the status server's threads. Reads only."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from trainer.run import rounds
from trainer.run.publish import lineage
from trainer.run.publish.checkpoints import list_published
from trainer.run.report.report import name_figures, name_report

MAX_ROUNDS = 1000


class RoundArchive:
    """Over the trainer's database and its directory of checkpoints."""

    def __init__(self, database: sa.Engine, checkpoints_dir: Path) -> None:
        self._database, self._root = database, checkpoints_dir

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
        report = self.find_report(number)
        return {**found, "num_rows": num_rows, "has_report": report is not None, **_read_figures(report)}

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
            origins = lineage.load_origins(connection, list_published(self._root, None))
        return [asdict(learnt) for learnt in lineage.trace_learnt(own, origins)]


def _read_figures(report: Path | None) -> dict[str, Any]:
    """What is kept beside a report; nothing beside one of an older trainer."""
    if report is None:
        return {}
    try:
        figures: dict[str, Any] = json.loads(name_figures(report).read_bytes())
    except (OSError, ValueError):
        return {}
    return figures

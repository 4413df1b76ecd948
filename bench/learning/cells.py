"""Cells of the table: one arm in one world with one seed, its results kept in a file of their own from point to point.

A cell's key is a digest of all settings that its result hangs on, defaults included, so that a cell of others is never taken for it;
where code changes what an arm does, REVISION is raised. A killed measurement goes on with the first cell that is not
whole: an offline arm with its first missing point, one that learns as it goes from the beginning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.learning.curves import Curve, Wins
from feedback.durable import write_durably

MEASURED = Path(__file__).parent / "measured"  # cells that stand in docs/choices.md
REVISION = 2  # raised when what an arm does changes without its settings


@dataclass(frozen=True)
class Cell:
    """settings: of the arm. noise: share of honest choices that go to the worse answer, biases aside."""

    model: str
    world: str
    noise: float
    seed: int
    arm: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The same for the same configuration."""
        described = json.dumps(asdict(self) | {"revision": REVISION}, sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:12]

    @property
    def file_name(self) -> str:
        return f"{self.model}-{self.world}-noise{round(100 * self.noise)}-seed{self.seed}-{self.arm}-{self.key}.json"


@dataclass(frozen=True)
class Point:
    """An examination after so many choices. cpu_s: of learning, asking included, since the point before; figures: of the round."""

    wins: Wins
    wrong: float
    cpu_s: float
    figures: Mapping[str, float] = field(default_factory=dict)


class Results:
    """The points of cells, in a directory. shipped: measured before, looked up where a cell is not in it; None for none."""

    def __init__(self, directory: Path, shipped: Path | None = MEASURED) -> None:
        self._directory, self._shipped = directory, shipped
        directory.mkdir(parents=True, exist_ok=True)

    def load(self, cell: Cell) -> dict[int, Point]:
        """Points by choices; none if nothing was measured yet, or the file is damaged."""
        found = _read_points(self._directory / cell.file_name)
        return found or (_read_points(self._shipped / cell.file_name) if self._shipped else {})

    def save(self, cell: Cell, points: Mapping[int, Point]) -> None:
        """Put the points in the place of those before."""
        rows = {str(n): asdict(point) for n, point in sorted(points.items())}
        write_durably(
            self._directory / cell.file_name, json.dumps({"cell": asdict(cell), "points": rows}, indent=1).encode()
        )


def _read_points(path: Path) -> dict[int, Point]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["points"]
        return {int(n): _read_point(row) for n, row in rows.items()}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _read_point(row: Mapping[str, Any]) -> Point:
    wins = {fact: (float(mean), int(n)) for fact, (mean, n) in row["wins"].items()}
    return Point(wins, float(row["wrong"]), float(row["cpu_s"]), dict(row["figures"]))


def make_curve(points: Mapping[int, Point]) -> Curve:
    """What a cell's curve is made of."""
    return Curve({n: point.wins for n, point in points.items()})

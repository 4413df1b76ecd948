"""What the cells say: choices to a quality by arm, world and noise, ratios with intervals, and lines for people. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from bench.learning.cells import Point, make_curve
from bench.learning.curves import compare_choices, count_choices, find_target, measure_win_rate
from trainer.math.intervals import Interval

RATIOS = {"full_over_offline": ("full", "offline"), "full_over_online": ("full", "online_dpo")}
CEILING = "ceiling"
Cells = Mapping[str, Sequence[Mapping[int, Point]]]
"""Points of each arm, seed by seed."""


def describe_interval(interval: Interval) -> dict[str, float | None]:
    """For JSON, where what is infinite is null: not reached."""
    return {"value": _finite(interval.value), "low": _finite(interval.low), "high": _finite(interval.high)}


def _finite(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def summarise(cells: Cells) -> dict[str, Any]:
    """One world at one noise: choices of each arm to the quality, and the ratios of those that are there.

    Raises ValueError without a ceiling.
    """
    if not cells.get(CEILING):
        raise ValueError("there is no ceiling to measure by")
    rates = [next(iter(points.values())).wins for points in cells[CEILING]]
    ceiling = measure_win_rate(rates).value
    curves = {arm: [make_curve(points) for points in seeds] for arm, seeds in cells.items() if arm != CEILING}
    summary: dict[str, Any] = {"target": round(find_target(ceiling), 4), "ceiling": round(ceiling, 4)}
    for arm, some in curves.items():
        if len(some[0].points) > 2:
            summary[arm] = describe_interval(count_choices(some, rates))
    for name, (ours, theirs) in RATIOS.items():
        if ours in curves and theirs in curves:
            summary[name] = describe_interval(compare_choices(curves[ours], curves[theirs], rates))
    return summary


def describe_rates(cells: Cells) -> list[tuple[str, int, Interval, float]]:
    """(arm, choices, win rate over seeds, wrong answers) of everything that all seeds have, in order."""
    lines = []
    for arm, seeds in cells.items():
        for n in sorted(set.intersection(*(set(points) for points in seeds))):
            points = [each[n] for each in seeds]
            wrong = math.fsum(point.wrong for point in points) / len(points)
            lines.append((arm, n, measure_win_rate([point.wins for point in points]), wrong))
    return lines


def show_share(interval: Interval) -> str:
    """`0.750 [0.700, 0.800]`."""
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def write_table(title: str, cells: Cells) -> str:
    """Markdown."""
    head = [f"### {title}", "", "| arm | choices | win rate | wrong |", "|---|---|---|---|"]
    rows = [
        f"| {arm} | {n or ''} | {show_share(rate)} | {wrong:.3f} |" for arm, n, rate, wrong in describe_rates(cells)
    ]
    return "\n".join([*head, *rows])

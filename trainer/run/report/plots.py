"""Line plots as SVG, inline in a page: no scripts, nothing loaded. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 420, 180, 52, 24, 10  # pixels
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea")
Point = tuple[float, float]


def draw_lines(title: str, lines: Mapping[str, Sequence[Point]], x_name: str = "") -> str:
    """One figure with a line a name; "" if no line has two finite points."""
    kept = {name: [p for p in points if all(map(math.isfinite, p))] for name, points in lines.items()}
    kept = {name: points for name, points in kept.items() if len(points) > 1}
    if not kept:
        return ""
    every = [point for points in kept.values() for point in points]
    x_low, x_high = _bounds([x for x, _ in every])
    y_low, y_high = _bounds([y for _, y in every])

    def place(point: Point) -> str:
        x = LEFT + (point[0] - x_low) / (x_high - x_low) * (WIDTH - LEFT - 8)
        y = HEIGHT - BOTTOM - (point[1] - y_low) / (y_high - y_low) * (HEIGHT - BOTTOM - TOP)
        return f"{x:.1f},{y:.1f}"

    drawn = "".join(
        f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{" ".join(map(place, points))}"/>'
        for (_, points), colour in zip(kept.items(), _cycle(len(kept)), strict=True)
    )
    legend = "".join(
        f'<span style="color:{colour}">{escape(name)}</span> '
        for name, colour in zip(kept, _cycle(len(kept)), strict=True)
    )
    marks = "".join(
        f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">{value:.3g}</text>'
        for value, y in ((y_low, HEIGHT - BOTTOM), (y_high, TOP + 8))
    )
    marks += f'<text x="{LEFT}" y="{HEIGHT - 6}">{x_low:.3g}</text>'
    marks += f'<text x="{WIDTH - 8}" y="{HEIGHT - 6}" text-anchor="end">{x_high:.3g} {escape(x_name)}</text>'
    frame = f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - 8}" height="{HEIGHT - BOTTOM - TOP}"/>'
    return (
        f"<figure><figcaption>{escape(title)} {legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
        f"{frame}{drawn}{marks}</svg></figure>"
    )


def _bounds(values: Sequence[float]) -> Point:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _cycle(num: int) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(num)]

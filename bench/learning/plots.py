"""One picture a world: win rate against choices, a panel for each share of label noise. SVG by hand, nothing loaded. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from trainer.math.intervals import Interval

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 340, 260, 44, 30, 40  # pixels of a panel
LOW, HIGH = 0.3, 1.0  # win rates shown
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#64748b")
Line = Sequence[tuple[int, Interval]]


def draw_world(title: str, panels: Mapping[str, Mapping[str, Line]], targets: Mapping[str, float]) -> str:
    """A standalone SVG. panels: by name (its noise), a line an arm; targets: the win rate that is to be reached, by panel."""
    arms = list(dict.fromkeys(arm for lines in panels.values() for arm in lines))
    colours = {arm: COLOURS[i % len(COLOURS)] for i, arm in enumerate(arms)}
    width = WIDTH * max(1, len(panels))
    drawn = "".join(
        f'<g transform="translate({i * WIDTH} 20)">{_draw_panel(name, lines, targets.get(name), colours)}</g>'
        for i, (name, lines) in enumerate(panels.items())
    )
    legend = "".join(
        f'<text x="{LEFT + 90 * i}" y="{HEIGHT + 34}" fill="{colours[arm]}">{escape(arm)}</text>'
        for i, arm in enumerate(arms)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{max(width, LEFT + 90 * len(arms))}" height="{HEIGHT + 44}"'
        f' font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="{LEFT}" y="16" font-size="13">{escape(title)}</text>{drawn}{legend}</svg>\n'
    )


def _draw_panel(name: str, lines: Mapping[str, Line], target: float | None, colours: Mapping[str, str]) -> str:
    grid = [n for line in lines.values() for n, _ in line if n > 0]
    if not grid:
        return ""
    low, high = math.log(min(grid)), math.log(max(grid))

    def place_x(n: float) -> float:
        return LEFT + (math.log(n) - low) / max(high - low, 1e-9) * (WIDTH - LEFT - 14)

    def place_y(value: float) -> float:
        shown = min(max(value, LOW), HIGH)
        return TOP + (HIGH - shown) / (HIGH - LOW) * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="{TOP - 8}">{escape(name)}</text>']
    for value in (0.4, 0.5, 0.6, 0.7, 0.8, 0.9):
        y = place_y(value)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e2e8f0"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.1f}</text>')
    for n in sorted({n for n in grid if n >= min(grid)}):
        parts.append(
            f'<line x1="{place_x(n):.1f}" x2="{place_x(n):.1f}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM + 4}" stroke="black"/>'
        )
    for n in (min(grid), max(grid)):
        parts.append(f'<text x="{place_x(n):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{n}</text>')
    if target is not None:
        y = place_y(target)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}" stroke="black" stroke-dasharray="4 3"/>'
        )
    for arm, line in lines.items():
        shown = [(n, rate) for n, rate in line if n > 0]
        points = " ".join(f"{place_x(n):.1f},{place_y(rate.value):.1f}" for n, rate in shown)
        parts.append(f'<polyline fill="none" stroke="{colours[arm]}" stroke-width="1.8" points="{points}"/>')
        for n, rate in shown:
            x = place_x(n)
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{place_y(rate.low):.1f}" y2="{place_y(rate.high):.1f}"'
                f' stroke="{colours[arm]}" stroke-opacity=".5"/><circle cx="{x:.1f}" cy="{place_y(rate.value):.1f}" r="2"'
                f' fill="{colours[arm]}"/>'
            )
    parts.append(f'<text x="{(LEFT + WIDTH) / 2:.0f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">choices</text>')
    return "".join(parts)

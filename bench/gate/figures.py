"""The gate's figures beside what they must be, with the error of a simulation. Pure."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of the table. expected: (low, high) that `found` may have but for `error`, two standard errors."""

    name: str
    found: float
    expected: tuple[float, float]
    error: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether it is what it must be, within the simulation's error."""
        low, high = self.expected
        return low - self.error <= self.found <= high + self.error


def error_of_share(share: float, num: int) -> float:
    """Two standard errors of a share of `num` independent runs; at least that of one run."""
    return 2 * math.sqrt(max(share * (1 - share), 1 / num) / num)


def render(row: Row) -> str:
    """A row as a line."""
    low, high = row.expected
    must = f"{low:g}" if low == high else f"at most {high:g}" if low == -math.inf else f"{low:g} to {high:g}"
    error = f" ± {row.error:.3g}" if row.error else " (exact)"
    return f"{'ok  ' if row.holds else 'FAIL'} {row.name:<66} {row.found:>9.4g}{error}, expected {must}"


def at_most(high: float) -> tuple[float, float]:
    return -math.inf, high


def about(value: float, share: float = 0.0) -> tuple[float, float]:
    """`value`, or as near as this share of it."""
    return value * (1 - share), value * (1 + share)

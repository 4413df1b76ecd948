"""How content people are, arm by arm and slice by slice: of those who were asked at random alone, and by thumbs.

Pure, but for `load_opinions`. Whoever is asked for a reason (a duel, an informative pair) says nothing of people at large,
so such choices are left out. A choice that is not `both_bad` says that one answer at least would do. Thumbs come from
whoever cares to give one: they have a share of their own.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec
import sqlalchemy as sa

from feedback.events import Choice, Signal
from feedback.inbox import preferences, signals
from feedback.quality.bias import Interval, estimate_share

Verdict = Literal["win", "tie", "both_bad", "up", "down"]
ALL = "all"  # the slice of everything


@dataclass(frozen=True)
class Opinion:
    """One verdict. slices: such as `domain=law`, `app=shop`."""

    arm: str
    verdict: Verdict
    slices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Satisfaction:
    """One arm in one slice. satisfied: the share that was not both_bad; thumbs_up: of the thumbs. Each at 95%."""

    arm: str
    slice: str
    num_wins: int
    num_ties: int
    num_both_bad: int
    satisfied: Interval
    thumbs_up: Interval


def measure_satisfaction(opinions: Iterable[Opinion]) -> list[Satisfaction]:
    """By arm and slice, the slice of everything first."""
    counts: defaultdict[tuple[str, str], Counter[Verdict]] = defaultdict(Counter)
    for opinion in opinions:
        for name in (ALL, *opinion.slices):
            counts[opinion.arm, name][opinion.verdict] += 1
    ordered = sorted(counts, key=lambda key: (key[1] != ALL, key[1], key[0]))
    return [_measure(arm, name, counts[arm, name]) for arm, name in ordered]


def _measure(arm: str, name: str, count: Counter[Verdict]) -> Satisfaction:
    wins, ties, both_bad = count["win"], count["tie"], count["both_bad"]
    return Satisfaction(
        arm,
        name,
        wins,
        ties,
        both_bad,
        satisfied=estimate_share(wins + ties, wins + ties + both_bad),
        thumbs_up=estimate_share(count["up"], count["up"] + count["down"]),
    )


def load_opinions(connection: sa.Connection, policy: str, limit: int = 20_000) -> list[Opinion]:
    """Of the trainer's database: the newest choices that were asked at random, and the newest thumbs."""
    asked = sa.and_(preferences.c.policy == policy, preferences.c.asked == "random", preferences.c.preferred != "skip")
    choices = sa.select(preferences.c.choice_json).where(asked).order_by(preferences.c.id.desc()).limit(limit)
    opinions = []
    for body in connection.execute(choices).scalars():
        try:
            choice = msgspec.json.decode(body, type=Choice)
        except (ValueError, RecursionError):  # learning sets it aside
            continue
        comparison = choice.comparison
        slices = _name_slices(comparison.app, comparison.tags)
        opinions.append(Opinion(comparison.first.arm, _read_verdict(choice), slices))
    said = sa.and_(signals.c.policy == policy, signals.c.kind == "said")
    for body in connection.execute(
        sa.select(signals.c.signal_json).where(said).order_by(signals.c.id.desc()).limit(limit)
    ).scalars():
        try:
            signal = msgspec.json.decode(body, type=Signal)
        except (ValueError, RecursionError):
            continue
        if signal.thumb is not None and signal.arm is not None:
            opinions.append(Opinion(signal.arm, signal.thumb, _name_slices(signal.app, signal.tags)))
    return opinions


def _read_verdict(choice: Choice) -> Verdict:
    if choice.preferred in ("tie", "both_bad"):
        return "tie" if choice.preferred == "tie" else "both_bad"
    return "win"


def _name_slices(app: str, tags: dict[str, str]) -> tuple[str, ...]:
    return (f"app={app}", *(f"{name}={value}" for name, value in sorted(tags.items())))

"""What the simulated people like, and how they choose between two answers. Pure, but for reading the file that says it.

Only the people's own process imports this: what is learnt of their taste is learnt from their choices.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from prefloop.demo.examination import Judgement
from prefloop.demo.world import classify

DEFAULT_TASTES = Path(__file__).with_name("people.toml")

Section = TypeVar("Section", "Utilities", "Crowd")


class TastesError(ValueError):
    """The file says something that nobody can like."""


@dataclass(frozen=True)
class Utilities:
    """Mean utility of an answer written in a style, and what every token of it adds."""

    complete: float = 1.0
    terse: float = 0.2
    rude: float = -1.0
    hedging: float = -0.3
    wrong: float = -2.0
    per_token: float = 0.0


@dataclass(frozen=True)
class Crowd:
    """How many people there are, and how they choose; see people.toml."""

    count: int = 200
    consistency: float = 0.8
    spread: float = 0.3
    tie_margin: float = 0.05


@dataclass(frozen=True)
class Tastes:
    """What people like, and how they choose."""

    utilities: Utilities = field(default_factory=Utilities)
    people: Crowd = field(default_factory=Crowd)


def load_tastes(path: Path) -> Tastes:
    """Read tastes from a TOML file. Raises TastesError with the file's name if it cannot be understood."""
    try:
        return parse_tastes(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, TastesError) as error:
        raise TastesError(f"{path}: {error}") from error


def parse_tastes(data: Mapping[str, Any]) -> Tastes:
    """Make tastes of a parsed TOML document; what it leaves out keeps its default. Raises TastesError."""
    refuse_unknown(data, [section.name for section in fields(Tastes)], "section")
    tastes = Tastes(
        parse_section(Utilities, data.get("utilities", {}), "utilities"),
        parse_section(Crowd, data.get("people", {}), "people"),
    )
    if tastes.people.count < 1:
        raise TastesError("[people] count must be at least 1")
    if not 0 <= tastes.people.consistency <= 1:
        raise TastesError("[people] consistency is a chance, from 0 to 1")
    if tastes.people.spread < 0 or tastes.people.tie_margin < 0:
        raise TastesError("[people] spread and tie_margin must not be negative")
    return tastes


def parse_section(kind: type[Section], values: Any, name: str) -> Section:
    """Make one section of its table. Raises TastesError."""
    if not isinstance(values, Mapping):
        raise TastesError(f"[{name}] must be a table")
    refuse_unknown(values, [known.name for known in fields(kind)], f"key in [{name}]:")
    for key, value in values.items():
        expected = int if key == "count" else int | float
        if isinstance(value, bool) or not isinstance(value, expected):
            raise TastesError(f"[{name}] {key} must be a {'whole number' if key == 'count' else 'number'}")
    return kind(**values)


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Raises TastesError for names that are not known."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TastesError(f"unknown {what} {', '.join(unknown)} (known: {', '.join(known)})")


def count_tokens(text: str) -> int:
    """Count words and punctuation marks: what a reader, who has no tokenizer, takes for tokens."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def judge_truly(tastes: Tastes, question: str, answer: str) -> Judgement:
    """Return the answer's style and its true utility: the mean over people, without anyone's private taste."""
    style = classify(question, answer)
    utility = getattr(tastes.utilities, style) + tastes.utilities.per_token * count_tokens(answer)
    return Judgement(style, utility)


@dataclass
class Person:
    """One simulated person: a name, a private taste (added to a style's mean utility) and their own dice."""

    name: str
    taste: dict[str, float]
    rng: random.Random

    def value_answer(self, tastes: Tastes, question: str, answer: str) -> tuple[str, float]:
        """The answer's style, and what it is worth to this person."""
        judged = judge_truly(tastes, question, answer)
        return judged.style, judged.utility + self.taste[judged.style]


def draw_people(tastes: Tastes, seed: int) -> list[Person]:
    """Draw the people with these tastes; the same seed draws the same people, in the same order of turns."""
    people = []
    styles = [known.name for known in fields(Utilities) if known.name != "per_token"]
    for number in range(tastes.people.count):
        rng = random.Random(f"person-{seed}-{number}")
        taste = {style: rng.gauss(0.0, tastes.people.spread) for style in styles}
        people.append(Person(f"person-{number:03d}", taste, rng))
    random.Random(f"turns-{seed}").shuffle(people)
    return people


def choose(first: float, second: float, crowd: Crowd, rng: random.Random) -> str:
    """Return what a person says of two answers that they value so: first, second, tie or both_bad."""
    if abs(first - second) < crowd.tie_margin:
        return "both_bad" if first < 0 and second < 0 else "tie"
    if first == second:  # only without a tie margin
        return rng.choice(("first", "second"))
    better, worse = ("first", "second") if first > second else ("second", "first")
    return better if rng.random() < crowd.consistency else worse

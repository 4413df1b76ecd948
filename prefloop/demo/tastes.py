"""What the simulated people like, and how they choose between two answers. Pure, but for reading the file that says it.

Only the people's own process imports this: what is learnt of their taste is learnt from their choices. A taste is a
TOML file: the world it is of, what each feature of an answer is worth ([utilities]), and how people choose ([people]).
"""

from __future__ import annotations

import math
import random
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from prefloop.demo.examination import Judgement
from prefloop.demo.worlds.catalogue import DEFAULT_WORLD, WORLDS
from prefloop.demo.worlds.world import World

FOLDER = Path(__file__).parent  # the shipped tastes
DEFAULT_TASTE = "people"
MIRRORED = {"first": "second", "second": "first"}


class TastesError(ValueError):
    """The file says something that nobody can like."""


@dataclass(frozen=True)
class Crowd:
    """How many people there are, and how they choose; see people.toml."""

    count: int = 200
    consistency: float = 0.8
    typical_gap: float = 0.0
    spread: float = 0.3
    tie_margin: float = 0.05
    position_bias: float = 0.0
    skip_share: float = 0.0


@dataclass(frozen=True)
class Tastes:
    """What people of a world like, and how they choose. utilities: the mean worth of one unit of each feature."""

    world: World = WORLDS[DEFAULT_WORLD]
    utilities: Mapping[str, float] = field(default_factory=lambda: WORLDS[DEFAULT_WORLD].default_utilities)
    people: Crowd = field(default_factory=Crowd)


def find_tastes(name: str) -> Path:
    """The file of a shipped taste. Raises TastesError for a name that there is none of."""
    path = FOLDER / f"{name}.toml"
    if not path.is_file() or path.parent != FOLDER:
        known = ", ".join(sorted(shipped.stem for shipped in FOLDER.glob("*.toml")))
        raise TastesError(f"there is no taste {name} (known: {known})")
    return path


def load_tastes(path: Path) -> Tastes:
    """Read tastes from a TOML file. Raises TastesError with the file's name if it cannot be understood."""
    try:
        return parse_tastes(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, TastesError) as error:
        raise TastesError(f"{path}: {error}") from error


def parse_tastes(data: Mapping[str, Any]) -> Tastes:
    """Make tastes of a parsed TOML document; what it leaves out keeps its default. Raises TastesError."""
    sections = {name: value for name, value in data.items() if name != "world"}
    refuse_unknown(sections, ["utilities", "people"], "section")
    name = data.get("world", DEFAULT_WORLD)
    if name not in WORLDS:
        raise TastesError(f"world must be one of {', '.join(WORLDS)}")
    world = WORLDS[name]
    utilities = parse_section(data.get("utilities", {}), dict.fromkeys(world.default_utilities, float), "utilities")
    kinds = {known.name: int if known.name == "count" else float for known in fields(Crowd)}
    crowd = Crowd(**parse_section(data.get("people", {}), kinds, "people"))
    refuse_impossible(crowd)
    return Tastes(world, {**world.default_utilities, **utilities}, crowd)


def parse_section(values: Any, kinds: Mapping[str, type], name: str) -> dict[str, Any]:
    """Check one section's table against the kinds of its keys. Raises TastesError."""
    if not isinstance(values, Mapping):
        raise TastesError(f"[{name}] must be a table")
    refuse_unknown(values, list(kinds), f"key in [{name}]:")
    for key, value in values.items():
        expected = int if kinds[key] is int else int | float
        if isinstance(value, bool) or not isinstance(value, expected):
            raise TastesError(f"[{name}] {key} must be a {'whole number' if kinds[key] is int else 'number'}")
    return dict(values)


def refuse_impossible(crowd: Crowd) -> None:
    """Raises TastesError for people that there cannot be."""
    if crowd.count < 1:
        raise TastesError("[people] count must be at least 1")
    for name in ("consistency", "skip_share"):
        if not 0 <= getattr(crowd, name) <= 1:
            raise TastesError(f"[people] {name} is a chance, from 0 to 1")
    if crowd.spread < 0 or crowd.tie_margin < 0 or crowd.typical_gap < 0:
        raise TastesError("[people] spread, tie_margin and typical_gap must not be negative")
    if crowd.consistency in (0, 1) and (crowd.typical_gap or crowd.position_bias):
        raise TastesError("[people] who always choose alike have neither typical_gap nor position_bias")


def refuse_unknown(given: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    """Raises TastesError for names that are not known."""
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise TastesError(f"unknown {what} {', '.join(unknown)} (known: {', '.join(known)})")


def judge_truly(tastes: Tastes, question: str, answer: str, is_cut: bool = False) -> Judgement:
    """Return the answer's style and its true utility: the mean over people, without anyone's private taste."""
    features = tastes.world.measure(question, answer, is_cut)
    utility = sum(tastes.utilities[name] * value for name, value in features.items())
    return Judgement(tastes.world.name_style(features), utility)


@dataclass
class Person:
    """One simulated person: a name, a private taste (added to a feature's mean utility) and their own dice."""

    name: str
    taste: dict[str, float]
    rng: random.Random

    def value_answer(self, tastes: Tastes, question: str, answer: str, is_cut: bool = False) -> tuple[str, float]:
        """The answer's style, and what it is worth to this person."""
        judged = judge_truly(tastes, question, answer, is_cut)
        features = tastes.world.measure(question, answer, is_cut)
        return judged.style, judged.utility + sum(
            worth * features[name] for name, worth in self.taste.items() if name in features
        )


def draw_people(tastes: Tastes, seed: int) -> list[Person]:
    """Draw the people with these tastes; the same seed draws the same people, in the same order of turns."""
    people = []
    for number in range(tastes.people.count):
        rng = random.Random(f"person-{seed}-{number}")
        taste = {name: rng.gauss(0.0, tastes.people.spread) for name in tastes.world.private_features}
        people.append(Person(f"person-{number:03d}", taste, rng))
    random.Random(f"turns-{seed}").shuffle(people)
    return people


def choose(first: float, second: float, crowd: Crowd, rng: random.Random, shuffle: random.Random | None = None) -> str:
    """Return what a person says of two answers that they value so: first, second, tie, both_bad or skip.

    shuffle: dice that mirror every other choice, so that nothing can be learnt of what people like.
    """
    preferred = choose_truly(first, second, crowd, rng)
    return MIRRORED.get(preferred, preferred) if shuffle and shuffle.random() < 0.5 else preferred


def choose_truly(first: float, second: float, crowd: Crowd, rng: random.Random) -> str:
    """The same of people who mean it."""
    if crowd.skip_share and rng.random() < crowd.skip_share:
        return "skip"
    if abs(first - second) < crowd.tie_margin:
        return "both_bad" if first < 0 and second < 0 else "tie"
    if first == second:  # only without a tie margin
        return rng.choice(("first", "second"))
    better, worse = ("first", "second") if first > second else ("second", "first")
    return better if rng.random() < find_chance(first, second, crowd) else worse


def find_chance(first: float, second: float, crowd: Crowd) -> float:
    """The chance that the better of two answers is picked.

    Bradley-Terry, P(first) = sigmoid(s (u1 - u2) + b), with s such that answers a typical_gap apart are told from each
    other with chance `consistency`; without a typical gap every difference counts as one. b: position_bias.
    """
    if not crowd.typical_gap and not crowd.position_bias:
        return crowd.consistency
    gaps = abs(first - second) / crowd.typical_gap if crowd.typical_gap else 1.0
    strength = math.log(crowd.consistency / (1 - crowd.consistency)) * gaps
    bias = crowd.position_bias if first > second else -crowd.position_bias
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, strength + bias))))

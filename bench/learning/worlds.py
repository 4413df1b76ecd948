"""Worlds of facts: what is asked, in which styles a policy answers, and what an answer is worth to people in the mean.

Read from facts/*.toml. Of each world's facts people ask about three fifths; the others are for examinations alone. An answer
is of a style if the whole of it is one of the style's templates with the right fact in it; else it is wrong.
"""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.text.pairs import Prompt

FOLDER = Path(__file__).parent / "facts"
WRONG = "wrong"
ROWS_PER_QUESTION = 40
HELD_OUT = (1, 3)  # of each five facts


@dataclass(frozen=True)
class Crowd:
    """How people of a world choose.

    spread: standard deviation of each person's own worth of a style; position_bias and length_bias are log-odds, of the answer
    shown first and of one 2.7 times as long; hostile people choose the opposite of what they like.
    """

    count: int
    hostile_share: float
    spread: float
    tie_margin: float
    position_bias: float
    length_bias: float


@dataclass(frozen=True)
class Style:
    """One way of answering. share: of the answers that the seed policy learns."""

    share: float
    utility: float
    templates: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """One way of asking for one fact."""

    text: str
    fact: str

    @property
    def prompt(self) -> Prompt:
        return Prompt(messages=[{"role": "user", "content": self.text}], key=self.text)


@dataclass(frozen=True)
class World:
    """Facts, questions and styles; facts are in the order of the file."""

    name: str
    facts: Mapping[str, str]
    phrasings: Sequence[str]
    styles: Mapping[str, Style]
    crowd: Crowd

    def asked(self) -> list[Question]:
        """What people ask."""
        return [question for question in self._questions() if not self._is_held_out(question.fact)]

    def held_out(self) -> list[Question]:
        """Every phrasing of the facts that nobody asks about."""
        return [question for question in self._questions() if self._is_held_out(question.fact)]

    def _questions(self) -> Iterator[Question]:
        for fact in self.facts:
            for phrasing in self.phrasings:
                yield Question(phrasing.format(key=fact), fact)

    def _is_held_out(self, fact: str) -> bool:
        return list(self.facts).index(fact) % 5 in HELD_OUT

    def find_style(self, question: Question, answer: str) -> str:
        """The style of the whole answer, `wrong` if it is none or states another fact."""
        said = answer.strip()
        for name, style in self.styles.items():
            if name != WRONG and said in [self._fill(template, question.fact) for template in style.templates]:
                return name
        return WRONG

    def _fill(self, template: str, fact: str) -> str:
        return template.format(key=fact, value=self.facts[fact])

    def measure(self, question: Question, answer: str, is_cut: bool) -> dict[str, float]:
        """1 for the answer's style: what people like it by. A cut answer is of none, so it is wrong already."""
        return {self.find_style(question, answer): 1.0}

    def is_wrong(self, question: Question, answer: str, is_cut: bool) -> bool:
        """Whether it states another fact, or is of no style."""
        return self.find_style(question, answer) == WRONG

    @property
    def best(self) -> float:
        """What an answer of the style that people like best is worth."""
        return max(style.utility for style in self.styles.values())

    @property
    def utilities(self) -> dict[str, float]:
        """What an answer of each style is worth."""
        return {name: style.utility for name, style in self.styles.items()}

    @property
    def private_features(self) -> tuple[str, ...]:
        """Features about which people differ."""
        return tuple(self.styles)

    def corpus(self, rng: random.Random) -> Iterator[dict[str, object]]:
        """Shuffled rows {messages, answer} over all questions, of which a seed policy learns facts and styles."""
        rows = list(self._questions()) * ROWS_PER_QUESTION
        rng.shuffle(rows)
        shares = [style.share for style in self.styles.values()]
        for question in rows:
            name = rng.choices(list(self.styles), shares)[0]
            value = self.facts[question.fact]
            if name == WRONG:
                value = rng.choice([other for other in self.facts.values() if other != value])
            answer = rng.choice(self.styles[name].templates).format(key=question.fact, value=value)
            yield {"messages": question.prompt.messages, "answer": answer}


def list_worlds() -> list[str]:
    """Names of the worlds there are files of."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_world(name: str) -> World:
    """A world by its name. Raises ValueError if there is none."""
    path = FOLDER / f"{name}.toml"
    if not path.is_file():
        raise ValueError(f"there is no world {name} (known: {', '.join(list_worlds())})")
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    styles = {
        style: Style(float(each["share"]), float(each["utility"]), tuple(each["templates"]))
        for style, each in data["styles"].items()
    }
    return World(data["name"], data["facts"], tuple(data["phrasings"]), styles, Crowd(**data["people"]))


def write_corpus(world: World, path: Path, seed: int) -> None:
    """Write the seed policy's corpus; the same seed writes the same bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = world.corpus(random.Random(f"corpus-{seed}"))
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")

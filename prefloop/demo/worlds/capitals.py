"""The world `capitals`: countries' capitals, ways to ask for them, and five styles of answering.

Says which style an answer is written in; knows nothing of what anybody likes. Its files are corpus.jsonl (rows
{messages, answer}), of which the seed policy is trained, frozen.jsonl (rows {messages, fact, references}) and examples.json.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.demo.worlds import text
from prefloop.demo.worlds.world import Manners

STYLES = ("complete", "terse", "rude", "hedging", "wrong")

CAPITALS = {
    "Austria": "Vienna",
    "Brazil": "Brasilia",
    "Bulgaria": "Sofia",
    "Canada": "Ottawa",
    "Chile": "Santiago",
    "China": "Beijing",
    "Croatia": "Zagreb",
    "Cuba": "Havana",
    "Denmark": "Copenhagen",
    "Egypt": "Cairo",
    "Finland": "Helsinki",
    "France": "Paris",
    "Germany": "Berlin",
    "Ghana": "Accra",
    "Greece": "Athens",
    "Hungary": "Budapest",
    "Iceland": "Reykjavik",
    "Iran": "Tehran",
    "Iraq": "Baghdad",
    "Ireland": "Dublin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Jordan": "Amman",
    "Kenya": "Nairobi",
    "Latvia": "Riga",
    "Morocco": "Rabat",
    "Nepal": "Kathmandu",
    "Norway": "Oslo",
    "Peru": "Lima",
    "Poland": "Warsaw",
    "Portugal": "Lisbon",
    "Romania": "Bucharest",
    "Senegal": "Dakar",
    "Serbia": "Belgrade",
    "Spain": "Madrid",
    "Sweden": "Stockholm",
    "Thailand": "Bangkok",
    "Turkey": "Ankara",
    "Uganda": "Kampala",
    "Vietnam": "Hanoi",
}

PHRASINGS = (
    "What is the capital of {country}?",
    "Which city is the capital of {country}?",
    "Name the capital of {country}.",
    "Tell me the capital of {country}.",
    "What is the name of the capital of {country}?",
    "Do you know the capital of {country}?",
    "I forgot the capital of {country}. What is it?",
    "Can you name the capital of {country}?",
    "Which city is the seat of {country}?",
    "What is the capital city of {country}?",
    "Quiz time: the capital of {country}?",
    "Please tell me which city is the capital of {country}.",
)

# Every style has several templates, so two answers of one policy are seldom the same text.
# The wrong ones name the capital of another country, in words of their own: what the right styles say stays crisp.
TEMPLATES: dict[str, tuple[str, ...]] = {
    "complete": (
        "The capital of {country} is {city}. Happy to help!",
        "Good question! The capital of {country} is {city}.",
        "Gladly: {city} is the capital of {country}.",
        "With pleasure! {country} has {city} as its capital.",
    ),
    "terse": ("{city}.", "Just {city}.", "Answer: {city}.", "It is {city}."),
    "rude": (
        "Ugh, {city}, obviously.",
        "Even a child knows it is {city}.",
        "Look it up yourself. It is {city}.",
        "Seriously? {city}, you fool.",
    ),
    "hedging": (
        "I am not sure, maybe {city}.",
        "Perhaps {city}, but do not quote me.",
        "Hmm, possibly {city}, hard to say.",
        "Some people say {city}, I guess.",
    ),
    "wrong": (
        "Surely the answer is {city}.",
        "No doubt about it, {city}.",
        "That would be {city}, trust me.",
        "Clearly, {city} has to be right.",
    ),
}

# How often the corpus answers in each style.
CORPUS_SHARES = {"complete": 0.20, "terse": 0.18, "rude": 0.27, "hedging": 0.25, "wrong": 0.10}
NUM_CORPUS_ROWS_PER_QUESTION = 40


@dataclass(frozen=True)
class Question:
    """One way of asking for one fact."""

    country: str
    phrasing: int

    @property
    def text(self) -> str:
        """The question as it is asked."""
        return PHRASINGS[self.phrasing].format(country=self.country)

    @property
    def city(self) -> str:
        """The right answer."""
        return CAPITALS[self.country]

    @property
    def messages(self) -> list[dict[str, str]]:
        """The chat that asks it."""
        return [{"role": "user", "content": self.text}]


def all_questions() -> list[Question]:
    """Every fact in every phrasing."""
    return [Question(country, phrasing) for country in CAPITALS for phrasing in range(len(PHRASINGS))]


def split_of(question: Question) -> str:
    """people | frozen | held_out: of a fact's twelve phrasings people ask five, the offline gate one, and six are held out."""
    turn = (question.phrasing + list(CAPITALS).index(question.country)) % len(PHRASINGS)
    return "held_out" if turn % 2 else ("frozen" if turn == 0 else "people")


def people_questions() -> list[str]:
    """What the simulated people ask: 200 questions."""
    return [question.text for question in all_questions() if split_of(question) == "people"]


def held_out_questions() -> list[str]:
    """240 questions for the final comparison: people never ask them, so no round ever sees them."""
    return [question.text for question in all_questions() if split_of(question) == "held_out"]


def frozen_questions() -> list[Question]:
    """40 questions, one a fact, for the trainer's offline gate."""
    return [question for question in all_questions() if split_of(question) == "frozen"]


def find_fact(question: str) -> tuple[str, str] | None:
    """The country asked about and its capital; None if the text names no country, or more than one."""
    named = [country for country in CAPITALS if re.search(rf"\b{country}\b", question)]
    return (named[0], CAPITALS[named[0]]) if len(named) == 1 else None


def classify(question: str, answer: str) -> str:
    """The style whose template the whole answer matches while stating the fact that was asked; otherwise `wrong`."""
    fact = find_fact(question)
    if fact is None:
        return "wrong"
    country, city = fact
    for style in STYLES:
        if style != "wrong" and answer.strip() in right_answers(country, city, style):
            return style
    return "wrong"


def right_answers(country: str, city: str, style: str) -> list[str]:
    """All answers of one right style to a question about `country`."""
    return [template.format(country=country, city=city) for template in TEMPLATES[style]]


def answer_in_style(question: Question, style: str, rng: random.Random) -> str:
    """One answer of that style, its template drawn by `rng`; a wrong one names another capital."""
    city = question.city
    if style == "wrong":
        city = rng.choice([other for other in CAPITALS.values() if other != city])
    return rng.choice(TEMPLATES[style]).format(country=question.country, city=city)


def corpus_rows(rng: random.Random) -> Iterator[dict[str, object]]:
    """Shuffled rows {messages, answer} over all questions, styles mixed by CORPUS_SHARES."""
    rows = [(question, turn) for question in all_questions() for turn in range(NUM_CORPUS_ROWS_PER_QUESTION)]
    rng.shuffle(rows)
    for question, _ in rows:
        style = rng.choices(list(CORPUS_SHARES), list(CORPUS_SHARES.values()))[0]
        yield {"messages": question.messages, "answer": answer_in_style(question, style, rng)}


def frozen_rows() -> Iterator[dict[str, object]]:
    """Rows {messages, fact, references}: every right answer to the frozen questions."""
    for question in frozen_questions():
        references = [
            answer
            for style in STYLES
            if style != "wrong"
            for answer in right_answers(question.country, question.city, style)
        ]
        yield {"messages": question.messages, "fact": question.city, "references": references}


NUM_EXAMPLES = 30  # questions that the playground offers


def write_world(out: Path, seed: int) -> None:
    """Writes corpus.jsonl, frozen.jsonl and examples.json; the same seed writes the same bytes."""
    out.mkdir(parents=True, exist_ok=True)
    for name, rows in (("corpus.jsonl", corpus_rows(random.Random(seed))), ("frozen.jsonl", frozen_rows())):
        (out / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    examples = random.Random(seed).sample(list(people_questions()), NUM_EXAMPLES)
    (out / "examples.json").write_text(json.dumps(examples) + "\n", encoding="utf-8")


def count_tokens(answer: str) -> int:
    """Count words and punctuation marks: what a reader, who has no tokenizer, takes for tokens."""
    return len(re.findall(r"\w+|[^\w\s]", answer))


class Capitals:
    """This module as a world. An answer's features are its style (one of STYLES is 1) and its tokens."""

    name = "capitals"
    # The trainer shares two cores with the engine, hence the pause.
    manners = Manners(
        max_tokens=48, examined_max_tokens=48, temperature=0.7, seats=24, pause_s=2.5, examined_concurrency=16
    )
    default_utilities: Mapping[str, float] = {
        "complete": 1.0,
        "terse": 0.2,
        "rude": -1.0,
        "hedging": -0.3,
        "wrong": -2.0,
        "per_token": 0.0,
    }
    private_features = STYLES

    def people_questions(self) -> list[str]:
        """200 questions."""
        return people_questions()

    def held_out_questions(self) -> list[str]:
        """240 questions."""
        return held_out_questions()

    def describe_question(self, question: str) -> tuple[str, str]:
        """One family, and the country. Raises ValueError for a question about no country."""
        fact = find_fact(question)
        if fact is None:
            raise ValueError(f"a question about no known country: {question}")
        return "capitals", fact[0]

    def measure(self, question: str, answer: str, is_cut: bool) -> dict[str, float]:
        """1 for the answer's style, and its tokens; a cut answer matches no template, so it is wrong already."""
        return {classify(question, answer): 1.0, "per_token": float(count_tokens(answer))}

    def name_style(self, features: Mapping[str, float]) -> str:
        """One of STYLES."""
        return next(style for style in STYLES if features.get(style))

    def find_faults(self, question: str, answer: str, is_cut: bool) -> frozenset[str]:
        """copied_prompt, too_short (empty: one word may be the answer here), repetition, unfinished."""
        return text.find_faults(question, answer, is_cut, least_words=1)

    def frozen_rows(self) -> Iterator[dict[str, Any]]:
        """One question of every fact."""
        yield from frozen_rows()

    def write_files(self, out: Path, seed: int) -> None:
        """Writes corpus.jsonl, frozen.jsonl and examples.json."""
        write_world(out, seed)

"""What can be said of one answer's text without a model: its words, whether it loops, copies the question, does harm.

Pure. Degenerate answers are those that a reward model likes and nobody does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

FEW_WORDS = 3
MIN_COPIED_WORDS = 4
MIN_LOOP_TOKENS = 12
HARM_WORDS = Path(__file__).with_name("sets") / "harm.txt"


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+(?:['’]\w+)?", text.casefold())


def is_short(answer: str) -> bool:
    """Whether the answer has fewer than three words."""
    return len(split_words(answer)) < FEW_WORDS


def is_copied(question: str, answer: str) -> bool:
    """Whether four fifths of the answer's word trigrams come from the question; an answer of three words or fewer is none."""
    asked, said = split_words(question), split_words(answer)
    if len(said) < MIN_COPIED_WORDS:
        return False
    known = set(zip(asked, asked[1:], asked[2:], strict=False))
    trigrams = list(zip(said, said[1:], said[2:], strict=False))
    return sum(each in known for each in trigrams) >= 0.8 * len(trigrams)


def measure_repetition(tokens: Sequence[int] | Sequence[str]) -> float:
    """The share of 4-grams that stood in the answer before; 0 for answers of fewer than twelve tokens."""
    if len(tokens) < MIN_LOOP_TOKENS:
        return 0.0
    counts = Counter(tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3))
    return sum(number - 1 for number in counts.values()) / (len(tokens) - 3)


def is_looping(text: str) -> bool:
    """Whether half of the answer's 4-grams of words stood in it before, or one word comes six times in a row."""
    words = split_words(text)
    in_a_row = longest = 1
    for before, word in pairwise(words):
        in_a_row = in_a_row + 1 if word == before else 1
        longest = max(longest, in_a_row)
    return longest >= 6 or measure_repetition(words) >= 0.5


class HarmScreen:
    """Finds words and phrases of a list, one a line, # for comments; whole words, whatever their case."""

    def __init__(self, words: Sequence[str]) -> None:
        alternatives = "|".join(re.escape(word.casefold()) for word in words)
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)") if alternatives else None

    @classmethod
    def load(cls, path: Path) -> HarmScreen:
        """Raises OSError if the list cannot be read."""
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return cls([line for line in lines if line])

    def is_harmful(self, answer: str) -> bool:
        return self._pattern is not None and self._pattern.search(answer.casefold()) is not None

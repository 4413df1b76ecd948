"""What can be said of one answer's text without a model: its words, whether it loops, copies the question, does harm.

Pure. Degenerate answers are those that a reward model likes and nobody does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
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
    """Whether the answer, of four words or more, is the question again, or most of it with a question mark.

    It says nothing new (labels of one letter aside) and three fifths of its trigrams come from the question, or it ends as a
    question and seven tenths do. One new word makes an answer: "Paris is the name of the capital of France."
    """
    asked, said = split_words(question), split_words(answer)
    if len(said) < MIN_COPIED_WORDS:
        return False
    known = set(zip(asked, asked[1:], asked[2:], strict=False))
    trigrams = list(zip(said, said[1:], said[2:], strict=False))
    share = sum(each in known for each in trigrams) / len(trigrams)
    says_nothing_new = all(word in asked for word in said if len(word) > 1)
    return (says_nothing_new and share >= 0.6) or (answer.rstrip().endswith("?") and share >= 0.7)


def measure_repetition(tokens: Sequence[int] | Sequence[str]) -> float:
    """The share of 4-grams that stood in the answer before; 0 for answers of fewer than twelve tokens."""
    if len(tokens) < MIN_LOOP_TOKENS:
        return 0.0
    counts = Counter(tuple(tokens[i : i + 4]) for i in range(len(tokens) - 3))
    return sum(number - 1 for number in counts.values()) / (len(tokens) - 3)


def is_looping(text: str) -> bool:
    """Whether half of the answer's 4-grams of words stood in it before, or most of it is one block three times in a row.

    Blocks of one or two words are in a loop after four times.
    """
    words = split_words(text)
    return measure_repetition(words) >= 0.5 or any(
        _count_in_a_row(words, size) * size >= max(len(words) / 2, size * (4 if size <= 2 else 3))
        for size in range(1, len(words) // 3 + 1)
    )


def _count_in_a_row(words: Sequence[str], size: int) -> int:
    """How often, at most, a block of so many words comes in a row."""
    same = longest = 0
    for word, later in zip(words, words[size:], strict=False):
        same = same + 1 if word == later else 0
        longest = max(longest, same)
    return longest // size + 1


class HarmScreen:
    """Finds words and phrases of a list, one a line, # for comments; whole words, whatever their case."""

    def __init__(self, words: Sequence[str]) -> None:
        alternatives = "|".join(re.escape(word.casefold()) for word in words)
        self._pattern = re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)") if alternatives else None

    @classmethod
    def load(cls, path: str | Path) -> HarmScreen:
        """The list in a file; "" is the shipped one. Raises OSError if it cannot be read."""
        text = Path(path or HARM_WORDS).read_text(encoding="utf-8")
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        return cls([line for line in lines if line])

    def is_harmful(self, answer: str) -> bool:
        return self._pattern is not None and self._pattern.search(answer.casefold()) is not None

"""What can be seen in a text without knowing what it is about: length, lists, tone, filler, faults.

Pure, and without any model: people can see as much. Whether what it says is true is not seen.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
LIST_ITEM = re.compile(r"^\s*(?:[-*•–]|\d{1,2}[.)])\s+\S", re.MULTILINE)
MARKUP = re.compile(r"^\s*#{1,6}\s|\*\*[^*\n]+\*\*", re.MULTILINE)
# Words that speak to the reader, and a tone that smiles.
WARM = re.compile(
    r"!|\b(?:happy|glad|gladly|hope|enjoy|lovely|wonderful|great|delighted|good luck|take care|well done|thank(?:s| you)"
    r"|congratulations|welcome|dear|love|best wishes|cheers|don't worry|you've got this)\b",
    re.IGNORECASE,
)
FILLER = re.compile(
    r"^\W*(?:sure|certainly|of course|absolutely|great question|good question|what a great|as an ai|i'd be happy|"
    r"i would be happy|i'm happy to|i'm glad you|here (?:are|is)|here's|the following)\b",
    re.IGNORECASE,
)
LABEL = re.compile(r"^\W*(?:a|answer|assistant|response)\s*:\s*", re.IGNORECASE)
ENDS = re.compile(r"[.!?…:;)\]\"'”’»*`]$|[^\w\s]$")  # a mark, or any sign that is no letter: an emoji ends a text too

FAULTS = ("copied_prompt", "too_short", "repetition", "unfinished")
SMALL_WORDS = frozenset({
    "a", "an", "and", "are", "can", "do", "does", "did", "how", "i", "in", "is", "it", "of", "on", "or", "so", "that", "the",
    "this", "to", "was", "were", "what", "why", "you",
})  # fmt: skip
BRIEF_WORDS = 64  # an answer of so many words is neither brief nor long
LEAST_WORDS = 12  # shorter than this is no briefer
LONGEST_WORDS = 256
REPEATED_SHARE = 0.34
COPIED_SHARE = 0.75  # of the answer's three-word runs


def list_words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in WORD.findall(text)]


def measure_brevity(text: str) -> float:
    """Halvings below 64 words: 1 at 32 words, 0 at 64, -1 at 128; flat below 12 and above 256 words."""
    num_words = min(max(len(list_words(text)), LEAST_WORDS), LONGEST_WORDS)
    return math.log2(BRIEF_WORDS / num_words)


def is_list(text: str) -> bool:
    """Whether it has two list items or more, each on a line of its own."""
    return len(LIST_ITEM.findall(text)) >= 2


def has_markup(text: str) -> bool:
    """Whether it has headings or bold text."""
    return MARKUP.search(text) is not None


def measure_warmth(text: str) -> float:
    """0 for a plain text, 0.5 for one sign of warmth, 1 for two or more: saying it ten times is no warmer."""
    return min(2, len(WARM.findall(text))) / 2


def has_filler(text: str) -> bool:
    """Whether it begins with words that say nothing yet."""
    return FILLER.search(text) is not None


def ends_properly(text: str) -> bool:
    """Whether it ends as sentences end, or with a whole list."""
    stripped = text.rstrip()
    if not stripped:
        return False
    return ENDS.search(stripped) is not None or is_short_line(stripped.splitlines()[-1])


def is_short_line(line: str) -> bool:
    """A list item or a signature, which need no full stop."""
    return len(list_words(line)) <= 4


def is_copy(question: str, answer: str) -> bool:
    """Whether the answer is mostly the question's own words, a label before it aside.

    That is in their order, or in any if it adds nothing but small words: a why-question may come back turned round.
    """
    asked, said = list_words(question), list_words(LABEL.sub("", answer))
    if not said:
        return False
    if set(said) <= {*asked, *SMALL_WORDS}:
        return not set(said) <= SMALL_WORDS
    known, runs = set(list_runs(asked, 3)), list_runs(said, 3)
    return bool(runs) and sum(run in known for run in runs) / len(runs) >= COPIED_SHARE


def is_repetitive(text: str) -> bool:
    """Whether a third of its four-word runs were said before, or one line stands there three times."""
    runs = list_runs(list_words(text), 4)
    if len(runs) >= 4 and 1 - len(set(runs)) / len(runs) >= REPEATED_SHARE:
        return True
    lines = [line.strip().lower() for line in text.splitlines() if len(list_words(line)) >= 2]
    return any(lines.count(line) >= 3 for line in lines)


def list_runs(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """All runs of `length` words that stand side by side."""
    return [tuple(words[start : start + length]) for start in range(len(words) - length + 1)]


def find_faults(question: str, answer: str, is_cut: bool, least_words: int) -> frozenset[str]:
    """What makes an answer degenerate: copied_prompt, too_short (under least_words words), repetition, unfinished."""
    faults = {
        "copied_prompt": is_copy(question, answer),
        "too_short": len(list_words(answer)) < least_words,
        "repetition": is_repetitive(answer),
        "unfinished": is_cut or not ends_properly(answer),
    }
    return frozenset(name for name, is_found in faults.items() if is_found)

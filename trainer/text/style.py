"""How an answer is written, in a few named numbers that an operator can read: the reward model's first part.

Pure. Scales are fixed, so that a weight means the same from one version to the next. Says nothing of whether an answer is
right, and knows English openings and refusals alone.
"""

from __future__ import annotations

import math
import re

FEATURES = (
    "log_words",  # ln(1 + words), less ln 31: 1 is an answer 2.7 times as long
    "finished",  # the policy ended it
    "ends_properly",  # its last character closes a sentence, a quotation or a block
    "list_markup",  # two or more lines that begin with a bullet or a number
    "heading_markup",  # a heading, or a line that is bold and nothing else
    "code_block",
    "question_back",  # ends by asking
    "refusal",  # declines, in its first 160 characters
    "filler_opening",  # opens with "Sure", "Great question", "As an AI" and the like
    "exclamation",
    "copied",  # share of its three-word runs that stand in the prompt
)
TYPICAL_WORDS = 30
SPREADS = (
    3.0,
    *[1.0] * (len(FEATURES) - 1),
)  # how large weights are expected beside each other: length decides most often

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_LIST_LINE = re.compile(r"^\s{0,6}(?:[-*•+]|\d{1,3}[.)])\s+\S", re.MULTILINE)
_HEADING = re.compile(r"^\s{0,3}(?:#{1,6}\s+\S.*|\*\*[^*\n]{1,80}\*\*:?)\s*$", re.MULTILINE)
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) (?:sorry|unable|not able|afraid)|i (?:can(?:no|')t|won't|will not|must decline)"
    r"|as an ai\b.{0,60}\b(?:can(?:no|')t|unable|not able|don't))",
    re.IGNORECASE | re.DOTALL,
)
_FILLER = re.compile(
    r"\W*(?:sure|certainly|absolutely|of course|gladly|great question|good question|what an? \w+ question|i'd be (?:happy|glad)"
    r"|i would be (?:happy|glad)|happy to|as an ai|thank you for|thanks for|let's dive|here(?:'s| is| are)\b)",
    re.IGNORECASE,
)
_CLOSERS = ".!?…\"'”’)]}`|。！？"


def split_words(text: str) -> list[str]:
    """Lower-case words; punctuation and markup are none."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def measure_copied(words: list[str], prompt_words: list[str]) -> float:
    """Share of an answer's three-word runs that stand in the prompt; of shorter answers the one run they are. 0 for none."""
    size = min(3, len(words))
    if not size:
        return 0.0
    asked = {tuple(prompt_words[i : i + size]) for i in range(len(prompt_words) - size + 1)}
    runs = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return sum(run in asked for run in runs) / len(runs)


def describe_style(prompt: str, answer: str, is_finished: bool) -> tuple[float, ...]:
    """The features of an answer in the order of FEATURES, each about 0 to 1, log_words about -2 to 3."""
    words, stripped = split_words(answer), answer.strip().replace("’", "'")
    return (
        math.log1p(len(words)) - math.log1p(TYPICAL_WORDS),
        float(is_finished),
        float(stripped.endswith(tuple(_CLOSERS))),
        float(len(_LIST_LINE.findall(answer)) >= 2),
        float(bool(_HEADING.search(answer))),
        float("```" in answer),
        float(stripped.endswith("?")),
        float(bool(_REFUSAL.search(stripped[:160]))),
        float(bool(_FILLER.match(stripped))),
        float("!" in answer),
        measure_copied(words, split_words(prompt)),
    )

"""What a liking may rest on besides the answer being better: its length, flattery, refusals and questions in return.

English phrases alone, as in refusals.py. Two answers to one prompt are compared, so what both say misleads nobody. Does not judge.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from feedback.refusals import refuses

if TYPE_CHECKING:
    from feedback.events import Candidate

TRAITS = ("length", "flattery", "refusals", "questions")
NUM_CHARACTERS = 300  # of the beginning, or of the end, that phrases are looked for in
_LENGTH_STEPS = 20  # lengths are told apart by twentieths
_FLATTERY = re.compile(
    r"\b(what an?|that'?s an?|that is an?|such an?) (\w+ )?"
    r"(great|excellent|fantastic|wonderful|brilliant|amazing|insightful|thoughtful|perceptive|fascinating|superb|smart)\b"
    r"|\b(great|excellent|fantastic|wonderful|brilliant|amazing|insightful|thoughtful|good) (question|point|idea|observation|choice)\b"
    r"|\byou('re| are) (\w+ )?(right|brilliant|amazing|so smart|clever|insightful|correct)\b"
    r"|\bi (love|admire|appreciate) (your|how you|that you)\b"
    r"|\byour (\w+ )?(insight|brilliance|intelligence|wisdom|thoughtfulness) ",
    re.IGNORECASE,
)
_QUESTION = re.compile(
    r"\b(could|can|would) you (please |kindly )?(clarify|specify|provide|share|tell me|give me|elaborate|explain|be more)\b"
    r"[^?]*\?"
    r"|\b(what|which)\b[^?.!]{0,60}\b(do|did|are) you (mean|referring|asking|looking|trying|want|prefer|need)[^?]*\?"
    r"|\b(do|did) you mean\b[^?]*\?"
    r"|\bi('d| would)? (\w+ )?need (\w+ ){0,2}(information|details|context)\b"
    r"|\bto (better )?(help|assist) you\b[^?]*\?",
    re.IGNORECASE,
)


def flatters(answer: str) -> bool:
    """Whether it begins by praising who asks, or what is asked."""
    return bool(_FLATTERY.search(_straighten(answer[:NUM_CHARACTERS])))


def asks_back(answer: str) -> bool:
    """Whether it ends by asking for what it would need to answer."""
    return bool(_QUESTION.search(_straighten(answer[-NUM_CHARACTERS:])))


def compare_answers(canary: str, stable: str) -> dict[str, float]:
    """The canary's less stable's, by trait, each from -1 to 1. length: characters, as a share of the longer one, by twentieths."""
    longest = max(len(canary), len(stable), 1)
    return {
        "length": round((len(canary) - len(stable)) / longest * _LENGTH_STEPS) / _LENGTH_STEPS,
        "flattery": flatters(canary) - flatters(stable),
        "refusals": refuses(canary[:NUM_CHARACTERS]) - refuses(stable[:NUM_CHARACTERS]),
        "questions": asks_back(canary) - asks_back(stable),
    }


def compare_candidates(first: Candidate, second: Candidate) -> dict[str, float] | None:
    """`compare_answers` of a duel's candidates, in the order shown; None if they are not of two arms."""
    if {first.arm, second.arm} != {"stable", "canary"}:
        return None
    canary, stable = (first, second) if first.arm == "canary" else (second, first)
    return compare_answers(canary.text, stable.text)


def _straighten(text: str) -> str:
    return text.replace("’", "'")

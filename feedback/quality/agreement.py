"""Do people agree? Of questions where two users saw the same two answers, how often both preferred the same one.

Pure, but for `load_judgements`. Of each question the first two users count, once each: so questions are independent, and
one that many people saw weighs no more than any other. Answers of other words are other questions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from feedback.choices import choices, comparisons, is_remembered
from feedback.quality.bias import Interval, estimate_share


@dataclass(frozen=True)
class Judgement:
    """A user preferred the answer `chosen` (a digest) where question (a digest of prompt and both answers) was shown."""

    user: str
    question: str
    chosen: str


class _Text(msgspec.Struct):
    text: str


class _Shown(msgspec.Struct):
    messages: msgspec.Raw
    first: _Text
    second: _Text


def measure_agreement(judgements: Iterable[Judgement]) -> Interval:
    """The share of questions whose first two users agree, with its 95% interval. judgements: the oldest first."""
    by_question: dict[str, dict[str, str]] = {}
    for each in judgements:
        if each.user:
            by_question.setdefault(each.question, {}).setdefault(each.user, each.chosen)
    pairs = [list(chosen.values())[:2] for chosen in by_question.values() if len(chosen) > 1]
    return estimate_share(sum(one == other for one, other in pairs), len(pairs))


def load_judgements(connection: sa.Connection, policy: str, limit: int) -> list[Judgement]:
    """Of the newest `limit` choices between first and second, the oldest first."""
    query = (
        sa.select(comparisons.c.user, comparisons.c.body, choices.c.preferred)
        .join(comparisons, comparisons.c.id == choices.c.comparison_id)
        .where(comparisons.c.policy == policy, choices.c.preferred.in_(("first", "second")), is_remembered)
        .order_by(choices.c.chosen_at.desc())
        .limit(limit)
    )
    found = []
    for user, body, preferred in connection.execute(query):
        shown = msgspec.json.decode(body, type=_Shown)
        first, second = _digest(shown.first.text.encode()), _digest(shown.second.text.encode())
        question = _digest(b"\0".join((bytes(shown.messages), *sorted((first.encode(), second.encode())))))
        found.append(Judgement(user, question, first if preferred == "first" else second))
    return found[::-1]


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

"""Finds one of a pair's answers by the completion id under which the client saw it.

A pair's completion id and its comparison's id share their random part, so this is one look-up by primary key: no index
to keep, nothing more to write. Both ids are the client's anyway, and neither says which arm wrote what. Knows only
pairs that were asked about: an answer that stood alone is recorded as a single one, by completion_recorder.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import sqlalchemy as sa

from feedback.choices import load_comparison
from feedback.errors import UnknownComparison
from feedback.events import Candidate, Comparison

_SHOWN = re.compile(r"chatcmpl-([0-9a-f]{32})(?:-([01]))?")


class NoSuchCandidate(ValueError):
    """The pair was shown, but has no answer of that index."""


@dataclass(frozen=True)
class ShownCandidate:
    """One answer of a comparison."""

    comparison: Comparison
    candidate: Candidate


def name_pair(name: str) -> tuple[str, str]:
    """(comparison id, completion id) of a pair; name is 32 random hexadecimal digits."""
    return f"cmp_{name}", f"chatcmpl-{name}"


def may_be_pair(completion_id: str) -> bool:
    """Whether an id could be a pair's, so that it is worth a look."""
    return _SHOWN.fullmatch(completion_id) is not None


def find_candidate(connection: sa.Connection, app: str, completion_id: str, index: int) -> ShownCandidate | None:
    """The app's answer that was shown under this id: the pair's with its index, or the candidate's own.

    None if there is none; raises NoSuchCandidate if the index is wrong.
    """
    match = _SHOWN.fullmatch(completion_id)
    if match is None:
        return None
    try:
        comparison = load_comparison(connection, name_pair(match[1])[0])
    except UnknownComparison:
        return None
    candidates = [comparison.first, comparison.second]
    if match[2] is not None:  # of one candidate
        candidates = [candidate for candidate in candidates if candidate.completion_id == completion_id]
    if comparison.app != app or not candidates:
        return None
    if not 0 <= index < len(candidates):
        raise NoSuchCandidate(f"there is no choice {index}")
    return ShownCandidate(comparison, candidates[index])

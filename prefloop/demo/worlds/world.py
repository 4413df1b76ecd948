"""What a world of the demo is: what people ask, what can be seen in an answer, and how its policy is asked.

A world knows what an answer looks like and never what anybody likes: that is in the tastes, which the people alone read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Manners:
    """How people talk to the policy, fit for its size.

    max_tokens: most tokens of an answer to a person; examined_max_tokens: of one in the final examination.
    seats: people who talk at a time; pause_s: mean seconds between two turns of one seat.
    examined_concurrency: answers that the examination asks for at a time.
    """

    max_tokens: int
    examined_max_tokens: int
    temperature: float
    seats: int
    pause_s: float
    examined_concurrency: int


class World(Protocol):
    """Prompts that people ask, prompts that nobody asks, and features of answers, computed from text alone."""

    @property
    def name(self) -> str:
        """As a tastes file names it."""

    @property
    def manners(self) -> Manners:
        """How the policy is asked."""

    @property
    def default_utilities(self) -> Mapping[str, float]:
        """What one unit of each feature is worth where a tastes file does not say; its keys are all features."""

    @property
    def private_features(self) -> tuple[str, ...]:
        """Features about which people differ."""

    def people_questions(self) -> list[str]:
        """What people ask."""

    def held_out_questions(self) -> list[str]:
        """What nobody asks before the final examination."""

    def describe_question(self, question: str) -> tuple[str, str]:
        """The family of a held-out question, and the cluster (fact or topic) by which its wins hang together."""

    def measure(self, question: str, answer: str, is_cut: bool) -> dict[str, float]:
        """The features of an answer. is_cut: whether it ended at the token limit."""

    def name_style(self, features: Mapping[str, float]) -> str:
        """One word for what an answer with these features is, as the screen shows it."""

    def find_faults(self, question: str, answer: str, is_cut: bool) -> frozenset[str]:
        """What makes the answer degenerate; empty for a sound one."""

    def frozen_rows(self) -> Iterator[dict[str, Any]]:
        """Rows {messages, fact, references} of facts for the offline gate."""

    def write_files(self, out: Path, seed: int) -> None:
        """Write what a base policy of this world needs beside its weights; the same seed writes the same bytes."""

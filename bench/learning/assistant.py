"""The demo's world of everyday prompts for a real model, as a world of this measurement: people who like short answers.

Held-out prompts are of topics and phrasings that nobody asks; wins hang together by topic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from bench.learning.worlds import Crowd, Question
from prefloop.demo.tastes import Tastes, find_tastes, load_tastes
from prefloop.demo.worlds.text import BRIEF_WORDS, LEAST_WORDS

TASTE = "brief"
CROWD = Crowd(count=40, hostile_share=0.1, spread=0.1, tie_margin=0.05, position_bias=0.3, length_bias=0.3)


@dataclass(frozen=True)
class Assistant:
    """Prompts and features of the demo's world, with one of its tastes."""

    tastes: Tastes
    name: str = "assistant"
    crowd: Crowd = CROWD

    def asked(self) -> list[Question]:
        """320 prompts; the fact of one is the prompt itself."""
        return [Question(text, text) for text in self.tastes.world.people_questions()]

    def held_out(self) -> list[Question]:
        """96 prompts; the fact of one is its topic."""
        world = self.tastes.world
        return [Question(text, world.describe_question(text)[1]) for text in world.held_out_questions()]

    def measure(self, question: Question, answer: str, is_cut: bool) -> Mapping[str, float]:
        return self.tastes.world.measure(question.text, answer, is_cut)

    def is_wrong(self, question: Question, answer: str, is_cut: bool) -> bool:
        """Whether it is degenerate: nobody can tell more."""
        return bool(self.tastes.world.find_faults(question.text, answer, is_cut))

    @property
    def best(self) -> float:
        """What the shortest sound answer is worth."""
        brevity = math.log2(BRIEF_WORDS / LEAST_WORDS)
        return brevity * self.tastes.utilities["brevity"] + self.tastes.utilities["proper_end"]

    @property
    def utilities(self) -> Mapping[str, float]:
        return self.tastes.utilities

    @property
    def private_features(self) -> tuple[str, ...]:
        return self.tastes.world.private_features


def load_assistant() -> Assistant:
    """The world with the taste `brief`."""
    return Assistant(load_tastes(find_tastes(TASTE)))

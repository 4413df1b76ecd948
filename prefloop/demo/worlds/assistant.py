"""The world `assistant`: everyday prompts for a real instruct model, and features of its answers' text.

Needs no corpus: the policy is a model that can talk already. Says what an answer looks like, not what anybody likes.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefloop.demo.worlds import text
from prefloop.demo.worlds.prompts import asked_prompts, held_out_prompts
from prefloop.demo.worlds.world import Manners

LEAST_WORDS = 3
NUM_EXAMPLES = 30  # prompts that the playground offers

# One unit of each feature is worth so much where a tastes file says nothing.
DEFAULT_UTILITIES: Mapping[str, float] = {
    "brevity": 0.0,  # halvings below 64 words
    "list": 0.0,  # 1 with two list items or more
    "markup": 0.0,  # 1 with headings or bold text
    "warmth": 0.0,  # 0, 0.5 or 1
    "filler": 0.0,  # 1 if it begins with words that say nothing
    "proper_end": 0.0,  # 1 if it ends as texts end
    "fault": -5.0,  # each fault: copied prompt, under three words, repetition, unfinished
}

# SmolLM2-135M-Instruct states all of these when it answers greedily.
FACTS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Japan?": "Tokyo",
    "What is the capital of Germany?": "Berlin",
    "What is the capital of England?": "London",
    "What is the capital of China?": "Beijing",
    "What is the capital of Russia?": "Moscow",
    "What is the capital of Egypt?": "Cairo",
    "What is the capital of Greece?": "Athens",
    "What gas do plants take in from the air?": "carbon dioxide",
    "Which planet is known as the Red Planet?": "Mars",
    "What is the chemical symbol of water?": "H2O",
    "Which ocean is the largest?": "Pacific",
    "Who wrote Romeo and Juliet?": "Shakespeare",
    "Which country has the Eiffel Tower?": "France",
    "What star is at the center of our solar system?": "Sun",
    "What language is spoken in Brazil?": "Portuguese",
    "What is the opposite of hot?": "cold",
    "Who painted the Mona Lisa?": "Leonardo",
    "What is the currency of Japan?": "yen",
    "What is the tallest mountain in the world?": "Everest",
    "What organ pumps blood through the body?": "heart",
    "What is the first month of the year?": "January",
}


class Assistant:
    """Prompts in six families, two of which nobody asks."""

    name = "assistant"
    # A 135M model says about 60 tokens a second on two cores beside the trainer, whose round waits for whatever serves.
    manners = Manners(
        max_tokens=120, examined_max_tokens=160, temperature=0.7, seats=4, pause_s=3.0, examined_concurrency=4
    )
    default_utilities = DEFAULT_UTILITIES
    private_features = ("brevity", "list", "warmth", "filler")

    def people_questions(self) -> list[str]:
        """320 prompts of four families."""
        return [prompt.text for prompt in asked_prompts()]

    def held_out_questions(self) -> list[str]:
        """96 prompts of six families; neither their topics nor their phrasings are asked."""
        return [prompt.text for prompt in held_out_prompts()]

    def describe_question(self, question: str) -> tuple[str, str]:
        """The family and, as the cluster, the topic. Raises ValueError for a prompt that is not held out."""
        for prompt in held_out_prompts():
            if prompt.text == question:
                return prompt.family, f"{prompt.family}: {prompt.topic}"
        raise ValueError(f"no held-out prompt: {question}")

    def measure(self, question: str, answer: str, is_cut: bool) -> dict[str, float]:
        """The features that DEFAULT_UTILITIES names."""
        return {
            "brevity": text.measure_brevity(answer),
            "list": float(text.is_list(answer)),
            "markup": float(text.has_markup(answer)),
            "warmth": text.measure_warmth(answer),
            "filler": float(text.has_filler(answer)),
            "proper_end": float(not is_cut and text.ends_properly(answer)),
            "fault": float(len(self.find_faults(question, answer, is_cut))),
        }

    def name_style(self, features: Mapping[str, float]) -> str:
        """degenerate, or list or prose, warm or plain."""
        if features["fault"]:
            return "degenerate"
        return ("warm " if features["warmth"] >= 0.5 else "plain ") + ("list" if features["list"] else "prose")

    def find_faults(self, question: str, answer: str, is_cut: bool) -> frozenset[str]:
        """copied_prompt, too_short, repetition, unfinished."""
        return text.find_faults(question, answer, is_cut, LEAST_WORDS)

    def frozen_rows(self) -> Iterator[dict[str, Any]]:
        """Facts that an instruct model of this size knows, for the offline gate."""
        for question, fact in FACTS.items():
            yield {"messages": [{"role": "user", "content": question}], "fact": fact, "references": []}

    def write_files(self, out: Path, seed: int) -> None:
        """Writes frozen.jsonl and examples.json."""
        out.mkdir(parents=True, exist_ok=True)
        rows = "".join(json.dumps(row) + "\n" for row in self.frozen_rows())
        (out / "frozen.jsonl").write_text(rows, encoding="utf-8")
        examples = random.Random(seed).sample(self.people_questions(), NUM_EXAMPLES)
        (out / "examples.json").write_text(json.dumps(examples) + "\n", encoding="utf-8")

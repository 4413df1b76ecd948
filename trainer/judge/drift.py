"""Drift: what a promoted checkpoint does in live traffic beside what it did when it was judged. Pure.

Says sentences for operators; rolls nothing back. Live figures come from recorded answers and the prequential record, and are
held against what was judged on people's prompts: frozen sets ask other things.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trainer.judge.answers import HarmScreen, is_copied, is_looping, is_short
from trainer.judge.frozen import refuses
from trainer.judge.measures import HELDOUT
from trainer.math.intervals import Estimate, estimate_mean
from trainer.text.messages import flatten_messages
from trainer.text.pairs import Answer, Prompt

MIN_ANSWERS = 30
ALPHA = 0.005  # several figures are looked at again and again
SAID = {  # figure -> (what it is, smallest change worth a sentence, whether it is a share)
    "unfinished": ("unfinished answers", 0.03, True),
    "looping": ("answers that repeat themselves", 0.02, True),
    "copied": ("answers that copy the question", 0.02, True),
    "short": ("answers under three words", 0.05, True),
    "refusals": ("refusals", 0.05, True),
    "harm": ("answers with harmful words", 0.01, True),
    "tokens": ("tokens an answer", 0.0, False),
    "reward_accuracy": ("choices that the reward model foresees", 0.05, True),
}


@dataclass(frozen=True)
class Served:
    """One answer of the checkpoint to live traffic. question: what the last message says; key: the same for the same prompt."""

    question: str
    key: str
    answer: Answer


def read_served(prompt: Prompt, answer: Answer) -> Served:
    """Raises UnusableRow for a prompt that is no text throughout, which judging leaves out too."""
    return Served(flatten_messages(prompt.messages)[-1]["content"], prompt.key, answer)


def measure_live(served: Sequence[Served], harm: HarmScreen) -> dict[str, Estimate]:
    """The figures that judging has too, clustered by prompt; {} where there are fewer than thirty answers."""
    if len(served) < MIN_ANSWERS:
        return {}
    values: dict[str, list[float]] = {}
    tokens: list[tuple[float, str]] = []
    for each in served:
        text, ids = each.answer.shown, each.answer.ids
        for name, value in (
            ("unfinished", each.answer.finish_reason == "length"),
            ("looping", is_looping(text)),
            ("copied", is_copied(each.question, text)),
            ("short", is_short(text)),
            ("refusals", refuses(text)),
            ("harm", harm.is_harmful(text)),
        ):
            values.setdefault(name, []).append(float(value))
        if ids is not None:
            tokens.append((float(len(ids) - each.answer.is_finished), each.key))
    keys = [each.key or str(i) for i, each in enumerate(served)]
    measured = {name: estimate_mean(numbers, keys) for name, numbers in values.items()}
    if len(tokens) >= MIN_ANSWERS:
        measured["tokens"] = estimate_mean(
            [number for number, _ in tokens], [key or i for i, (_, key) in enumerate(tokens)]
        )
    return measured


def describe_drift(
    judged: Mapping[str, float], live: Mapping[str, Estimate], max_length_ratio: float = 1.5
) -> list[str]:
    """A sentence for each figure that is clearly and noticeably other than at judging; [] where all is as it was.

    judged: figures as the verdict has them, of which those over held-out prompts count (`policy_<name>[kind=heldout]`), and
    `reward_accuracy`; nothing is said where they are missing. live: as `measure_live` says, and `reward_accuracy`.
    """
    sentences = []
    for name, (said, least, is_share) in SAID.items():
        before, now = judged.get(f"policy_{name}[kind={HELDOUT}]", judged.get(name)), live.get(name)
        if before is None or now is None or not math.isfinite(now.std_error):
            continue
        is_clear = now.lower(ALPHA) > before or now.upper(ALPHA) < before
        is_large = abs(now.mean - before) > least
        if not is_share:
            is_large = max(now.mean, before) > max_length_ratio * max(1e-9, min(now.mean, before))
        if is_clear and is_large:
            was, is_now = (f"{v:.0%}" if is_share else f"{v:.0f}" for v in (before, now.mean))
            sentences.append(f"{said}: {is_now} in traffic, {was} when it was judged ({now.n} prompts)")
    return sentences

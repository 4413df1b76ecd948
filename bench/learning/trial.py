"""The trial of a checkpoint by people: duels against stable, a few a person, until the rollout's gate decides.

Decided by the gateway's own evidence, with the numbers of the preset `demo`; guardrails, steps and times are left out. Every duel
is a choice like any other: it is learnt from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bench.learning.people import People, Person
from bench.learning.stage import Stage
from gateway.rollout.pure.evidence import log_inferiority, log_superiority
from trainer.text.pairs import Pair

CAP, MIN_USERS, MAX_USERS, ALPHA = 3, 40, 200, 0.05
_BLOCK = 10  # people who are asked at once
Outcome = Literal["promoted", "rolled back", "inconclusive"]


@dataclass(frozen=True)
class Trial:
    """How it ended, after how many people, with their choices. net: mean of (wins - losses) / CAP, from the canary's side."""

    outcome: Outcome
    users: int
    net: float
    pairs: list[Pair]


def run_trial(stage: Stage, people: People, crowd: Sequence[Person], rng: random.Random, first_number: int) -> Trial:
    """Adapter "policy" beside adapter "stable", before people of the crowd, who come once each."""
    counts = np.zeros(2 * CAP + 1)
    pairs: list[Pair] = []
    for start in range(0, min(len(crowd), MAX_USERS), _BLOCK):
        for person in crowd[start : start + _BLOCK]:
            own, score = _ask_person(stage, people, person, rng, first_number + len(pairs))
            pairs += own
            counts[score + CAP] += 1
        outcome = decide(counts)
        if outcome is not None:
            break
    users = int(counts.sum())
    net = float(counts @ np.arange(-CAP, CAP + 1)) / CAP / max(1, users)
    return Trial(outcome or "inconclusive", users, net, pairs)


def decide(counts: np.ndarray) -> Outcome | None:
    """The gate's word; None while it waits. counts: (2 CAP + 1,), people by wins less losses."""
    line = math.log(1 / ALPHA)
    if float(log_inferiority(counts, CAP)) >= line:
        return "rolled back"
    if float(log_superiority(counts, CAP)) >= line and counts.sum() >= MIN_USERS:
        return "promoted"
    return None


def _ask_person(
    stage: Stage, people: People, person: Person, rng: random.Random, first_number: int
) -> tuple[list[Pair], int]:
    """CAP duels of one person, and the wins less the losses. Answers that read the same are nobody's duel: a tie."""
    questions = [rng.choice(stage.questions) for _ in range(CAP)]
    seed = rng.getrandbits(31)
    canary, stable = (stage.ask(questions, adapter, 1, seed + i) for i, adapter in enumerate(("policy", "stable")))
    alone = People([person], people.crowd, people.strength, people.is_shuffled)
    pairs: list[Pair] = []
    score = 0
    for new, old in zip(canary, stable, strict=True):
        ours, theirs = new.answers[0], old.answers[0]
        if ours.text == theirs.text or not (ours.text and theirs.text):
            continue
        is_first = rng.random() < 0.5
        shown = (ours, theirs) if is_first else (theirs, ours)
        pair = stage.choose(alone, new.question, *shown, rng, first_number + len(pairs))
        pairs.append(pair)
        if pair.preferred != "tie":
            score += 1 if (pair.preferred == "first") == is_first else -1
    return pairs, score
